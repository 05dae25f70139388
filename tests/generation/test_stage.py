from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.domains.domain import Domain, load_domains
from selfmoe_ray.errors import UserError
from selfmoe_ray.generation.domain_state import Complete, Part, Prompt
from selfmoe_ray.generation.fake import fake_complete, fake_text
from selfmoe_ray.generation.stage import domain_product, generate
from selfmoe_ray.run.events import silent
from selfmoe_ray.run.records import Completion
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Stage, run_stage

BASE = BaseModel("embedded", "nowhere", "0" * 16)
Finished = tuple[Part, list[Completion]]


def make_config(**generation: Any) -> RunConfig:
    settings = {"examples_per_domain": 20, "seeds_per_domain": 10, "part_size": 8, **generation}
    return parse_config({"domains": ["math", "reasoning"], "generation": settings})


def domains(config: RunConfig) -> list[Domain]:
    return load_domains(config.domains)


def run(root: Path, config: RunConfig, complete: Complete = fake_complete) -> RunDir:
    run_dir = RunDir(str(root), "run")
    gives = [domain_product(domain, config, BASE, run_dir) for domain in domains(config)]
    stage = Stage("generate", gives, lambda todo: generate(domains(config), todo, config, run_dir, complete, silent))
    run_stage(stage, run_dir)
    return run_dir


def writer(share_valid: float) -> Callable[[Prompt, str], str]:
    """Texts of which about this share passes, in both phases."""

    def write(prompt: Prompt, phase: str) -> str:
        return fake_text(prompt, phase) if random.Random(prompt.seed).random() < share_valid else " No."

    return write


class Recording:
    """A Complete that keeps what it was asked for, and can be made to fail after some parts."""

    def __init__(self, fail_after: int | None = None, share_valid: float = 1.0):
        self.asked: list[str] = []
        self.waves = 0
        self._fail_after = fail_after
        self._write = writer(share_valid)

    def __call__(self, parts: list[Part]) -> Iterator[Finished]:
        self.waves += 1
        for finished in fake_complete(parts, self._write):
            if self._fail_after is not None and len(self.asked) >= self._fail_after:
                raise RuntimeError("killed")
            self.asked.append(f"{finished[0].domain} {finished[0].phase} {finished[0].id}")
            yield finished


def test_each_domain_gets_its_examples_and_a_manifest(tmp_path: Path) -> None:
    config = make_config()
    run_dir = run(tmp_path, config)
    for domain in domains(config):
        examples = run_dir.read_examples(domain.name)
        assert len(examples) == 20
        assert len({example.instruction for example in examples}) == 20
        assert [example.id for example in examples] == sorted(example.id for example in examples)
        assert len(run_dir.read_seeds(domain.name, held_out=False)) == 10
        assert len(run_dir.read_seeds(domain.name, held_out=True)) == len(domain.seeds) - 10
        manifest = run_dir.read_manifest(run_dir.data(domain.name))
        assert manifest is not None
        counts = manifest["counts"]
        assert manifest["settings"] == domain_product(domain, config, BASE, run_dir).settings
        assert counts["examples"] == 20
        assert counts["brainstorm"]["prompt_tokens"] > 0 and counts["respond"]["completion_tokens"] > 0
        rejected = sum(sum(counts[phase]["rejected"].values()) for phase in ("brainstorm", "respond"))
        assert rejected == len(run_dir.read_rejects(domain.name))


def test_done_domains_are_not_touched(tmp_path: Path) -> None:
    config = make_config()
    run(tmp_path, config)
    again = Recording()
    run(tmp_path, config, again)
    assert again.asked == []


@pytest.mark.parametrize("fail_after", [0, 1, 4, 9])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, fail_after: int) -> None:
    config = make_config(oversample=1, max_rounds=8)
    whole = Recording(share_valid=0.5)
    undisturbed = run(tmp_path / "whole", config, whole)

    first = Recording(fail_after, share_valid=0.5)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", config, first)
    second = Recording(share_valid=0.5)
    resumed = run(tmp_path / "killed", config, second)

    assert whole.waves > 2
    assert len(first.asked) == fail_after
    assert first.asked + second.asked == whole.asked
    for domain in domains(config):
        assert resumed.read_examples(domain.name) == undisturbed.read_examples(domain.name)
        assert resumed.read_rejects(domain.name) == undisturbed.read_rejects(domain.name)


def test_the_order_in_which_parts_finish_does_not_matter(tmp_path: Path) -> None:
    def backwards(parts: list[Part]) -> Iterator[Finished]:
        return fake_complete(parts[::-1], writer(0.6))

    config = make_config(max_rounds=8)
    forth = run(tmp_path / "forth", config, Recording(share_valid=0.6))
    back = run(tmp_path / "back", config, backwards)
    for domain in domains(config):
        assert back.read_examples(domain.name) == forth.read_examples(domain.name)


def test_another_seed_gives_other_examples(tmp_path: Path) -> None:
    config = make_config()
    first = run(tmp_path / "first", config)
    second = run(tmp_path / "second", config.model_copy(update={"seed": 1}))
    assert not set(first.read_examples("math")) & set(second.read_examples("math"))


def test_each_duplicate_is_kept_once_across_rounds(tmp_path: Path) -> None:
    def few_tasks(prompt: Prompt, phase: str) -> str:
        seed = prompt.seed % 3 if phase == "brainstorm" else prompt.seed
        return fake_text(Prompt(prompt.id, prompt.text, seed), phase)

    config = make_config(max_rounds=3, accept_fewer=True)
    run_dir = run(tmp_path, config, lambda parts: fake_complete(parts, few_tasks))
    assert len(run_dir.read_examples("math")) == 3
    reasons = {reject.reason for reject in run_dir.read_rejects("math")}
    assert reasons == {"near_duplicate"}


def test_a_seed_is_an_echo_even_where_it_is_held_out(tmp_path: Path) -> None:
    config = make_config(max_rounds=1, accept_fewer=True)
    seeds = {domain.name: domain.seeds for domain in domains(config)}

    def echo(parts: list[Part]) -> Iterator[Finished]:
        for part in parts:
            texts = {
                prompt.id: seed.instruction for prompt, seed in zip(part.prompts, seeds[part.domain], strict=False)
            }
            is_first = part.id.endswith("0")
            yield from fake_complete([part], fake_text if is_first else lambda prompt, _: texts[prompt.id])  # noqa: B023

    run_dir = run(tmp_path, config, echo)
    rejects = [reject for reject in run_dir.read_rejects("math") if reject.phase == "brainstorm"]
    assert rejects and {reject.reason for reject in rejects} == {"echo_of_seed"}


def test_engine_errors_and_truncation_are_reasons(tmp_path: Path) -> None:
    def faulty(parts: list[Part]) -> Iterator[Finished]:
        for part, rows in fake_complete(parts):
            changes: list[dict[str, str]] = [
                {"error": "boom", "text": ""},
                {"finish_reason": "length"},
                {"text": " "},
            ]
            bad = [Completion(**{**vars(row), **change}) for row, change in zip(rows, changes, strict=False)]
            yield part, bad + rows[len(bad) :]

    run_dir = run(tmp_path, make_config(), faulty)
    assert len(run_dir.read_examples("math")) == 20
    assert {"engine_error", "truncated", "empty"} <= {reject.reason for reject in run_dir.read_rejects("math")}


def test_too_few_is_an_error_that_shows_yields_and_reasons(tmp_path: Path) -> None:
    config = make_config(max_rounds=2)
    with pytest.raises(UserError) as error:
        run(tmp_path, config, Recording(share_valid=0.2))
    text = str(error.value)
    assert "max_rounds = 2" in text and "accept_fewer" in text
    assert "math: " in text and " of 20" in text
    assert "brainstorm: " in text and "rejected: too_short " in text
    assert RunDir(str(tmp_path), "run").read_manifest("data/math") is None


def test_a_higher_limit_goes_on_from_what_is_there(tmp_path: Path) -> None:
    first, second = Recording(share_valid=0.3), Recording(share_valid=0.3)
    with pytest.raises(UserError):
        run(tmp_path, make_config(max_rounds=1), first)
    run_dir = run(tmp_path, make_config(max_rounds=10), second)
    assert not set(first.asked) & set(second.asked)
    assert len(run_dir.read_examples("math")) == 20


def test_accept_fewer_keeps_what_there_is_but_not_nothing(tmp_path: Path) -> None:
    config = make_config(max_rounds=1, accept_fewer=True)
    run_dir = run(tmp_path / "few", config, Recording(share_valid=0.3))
    assert 0 < len(run_dir.read_examples("math")) < 20
    with pytest.raises(UserError, match="0 of 20"):
        run(tmp_path / "none", config, Recording(share_valid=0.0))


def test_unfinished_work_of_another_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, make_config(), Recording(fail_after=1))
    with pytest.raises(UserError, match=r"generation\.part_size = 8.*asks for 4(.|\n)*--redo generate"):
        run(tmp_path, make_config(part_size=4))


def test_no_round_asks_for_more_than_the_yield_calls_for(tmp_path: Path) -> None:
    sizes: list[int] = []

    def counting(parts: list[Part]) -> Iterator[Finished]:
        sizes.append(sum(len(part.prompts) for part in parts if part.phase == "brainstorm"))
        return fake_complete(parts, writer(0.0))

    config = make_config(max_rounds=4, oversample=2)
    with pytest.raises(UserError):
        run(tmp_path, config, counting)
    assert sizes[0] == 2 * 2 * 20
    assert len(sizes) == 4 and all(size <= 2 * 10 * 30 for size in sizes)
