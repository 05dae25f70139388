"""A run is refused, or its losses told, before its first token: names, lengths in tokens of its base, dtypes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.errors import UserError
from selfmoe_ray.pipeline.preflight import fit_context
from selfmoe_ray.pipeline.run import describe
from selfmoe_ray.run.events import silent
from tests.faulty_bases import edited

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make(tmp_path: Path, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> MakeConfig:
    """`make(name="law", task="Say it", output="It", base=None, **settings)`: a run of one domain of six seeds."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def config(
        name: str = "law", task: str = "Say it", output: str = "It", base: Path | None = None, **settings: Any
    ) -> RunConfig:
        folder = tmp_path / "domain"
        folder.mkdir(exist_ok=True)
        (folder / "domain.yaml").write_text(
            f"name: {name}\ncovers: Laws.\nrequirements: [One law.]\nanswer: Say it.\nshape: free\n"
        )
        rows = [{"instruction": f"{task} {number}", "input": "", "output": output} for number in range(6)]
        (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"root": str(tmp_path / "runs"), "domains": [str(folder)], **settings}
        given["base_model"] = str(base or tiny_model_dir("llama"))
        given.setdefault("training", {"dtype": "float32"})
        given["generation"] = {"dtype": "float32", "seeds_per_domain": 6, **settings.get("generation", {})}
        return parse_config(given)

    return config


@pytest.mark.parametrize("name", ["random", "top2", "router", "base", "uniform", "top10"])
def test_a_domain_that_is_called_like_a_gate_is_refused(name: str, make: MakeConfig) -> None:
    with pytest.raises(UserError, match=f"domains: '{name}' cannot be a domain's name.* change `name`"):
        describe(make(name))


def test_a_domain_whose_name_no_file_could_have_is_refused(make: MakeConfig) -> None:
    with pytest.raises(UserError, match="has 300 characters"):
        describe(make("a" * 300))


@pytest.mark.parametrize("name", ["top", "top-2", "experts", "mixse", "ties", "all", "expert-law", "first2"])
def test_other_names_are_a_domains_own(name: str, make: MakeConfig) -> None:
    assert f"domain {name}: 6 seeds" in describe(make(name))


def test_a_base_that_no_mixture_can_be_made_of_is_refused_on_paper(
    make: MakeConfig, tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    changes = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    with pytest.raises(UserError, match="itself a mixture of experts"):
        describe(make(base=edited(tiny_model_dir("llama"), tmp_path / "base", changes)))


def test_engines_get_no_more_tokens_than_the_base_has_context() -> None:
    said: list[str] = []
    fitted = fit_context(parse_config({}), 512, lambda _, **fields: said.append(fields["message"]))
    assert fitted.generation.max_model_len == 512 and "4096 is more than the base's context; 512" in said[0]
    assert fit_context(parse_config({}), 8192, silent) == fit_context(parse_config({}), None, silent) == RunConfig()


@pytest.mark.parametrize(
    "given",
    [
        {"engine_kwargs": {"hf_overrides": {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}}},
        {"engine_kwargs": {"max_model_len": 4096}},
        {"env_vars": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}},
    ],
)
def test_a_context_that_the_user_extends_is_left_alone(given: dict[str, Any]) -> None:
    config = parse_config({"resources": {"generation": given}})
    assert fit_context(config, 512, silent) == config


def test_seeds_that_are_too_long_for_the_context_are_refused(make: MakeConfig) -> None:
    with pytest.raises(
        UserError, match=r"a brainstorm prompt with 3 seeds takes about \d+ of the 512 tokens.*leaves 0"
    ):
        describe(make(task="Say all of this " * 50))
    with pytest.raises(UserError, match=r"a respond prompt with 5 seeds .* but a response of its seeds takes \d+"):
        describe(make(output="It is so, and it is not. " * 20))


def test_rows_that_training_has_no_room_for_are_refused(make: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"training\.max_length is 16 tokens, but the shortest of its seeds takes \d+"):
        describe(make(training={"dtype": "float32", "max_length": 16}))


def test_what_would_be_cut_is_told(make: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    describe(make(generation={"respond": {"max_tokens": 400, "seeds_in_context": 2}}))
    assert "16 of 16 respond prompts leave less than the 400 tokens" in capsys.readouterr().out


def test_bfloat16_is_refused_where_the_gpus_do_not_know_it(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = tmp_path / "bin/nvidia-smi"
    gpu.parent.mkdir()
    gpu.write_text('#!/bin/sh\ncase "$1" in *compute_cap*) echo 7.5;; *) echo 15360;; esac\n')
    gpu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gpu.parent}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"generation\.dtype: bfloat16, but there is a GPU of compute capability 7\.5"):
        describe(make(generation={"dtype": "bfloat16"}))
    assert "stage generate: to do" in describe(make(generation={"dtype": "auto"}))
    on_cpus = {"generation": {"gpus_per_engine": 0}, "training": {"gpus_per_worker": 0}}
    assert "stage generate: to do" in describe(make(generation={"dtype": "bfloat16"}, resources=on_cpus))
