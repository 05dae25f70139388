"""Who sees which row: each split, and that all stages read the one that is written to the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.domains.domain import load_domain
from selfmoe_ray.domains.rows import draw_share, split_held_out, split_seeds, training_examples, unseen_examples
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Example, Seed
from selfmoe_ray.run.run_dir import RunDir

DOMAINS = ["math", "coding"]


def example(number: int, domain: str = "math") -> Example:
    return Example(f"{domain}/0/0/{number:02d}", domain, f"Task {number}", "", "b")


def test_split_is_a_deterministic_partition() -> None:
    domain = load_domain("math")
    shown, held_out = split_seeds(domain, used=10, seed=7)
    assert (shown, held_out) == split_seeds(load_domain("math"), used=10, seed=7)
    assert len(shown) == 10
    assert sorted(map(repr, shown + held_out)) == sorted(map(repr, domain.seeds))


def test_split_depends_on_the_seed_and_grows_with_used() -> None:
    domain = load_domain("math")
    shown, _ = split_seeds(domain, used=10, seed=7)
    assert split_seeds(domain, used=10, seed=8)[0] != shown
    assert split_seeds(domain, used=20, seed=7)[0][:10] == shown


def test_split_of_few_seeds_shows_them_all() -> None:
    domain = replace(load_domain("math"), seeds=load_domain("math").seeds[:3])
    for used in (3, 100):
        shown, held_out = split_seeds(domain, used=used, seed=0)
        assert len(shown) == 3 and held_out == []


def test_held_out_split_is_a_partition_independent_of_order() -> None:
    examples = [example(number) for number in range(50)]
    train, held_out = split_held_out(examples, 0.1, 200, seed=3)
    assert len(held_out) == 5 and sorted(train + held_out, key=lambda row: row.id) == sorted(
        examples, key=lambda row: row.id
    )
    _, reversed_held_out = split_held_out(examples[::-1], 0.1, 200, seed=3)
    assert {row.id for row in reversed_held_out} == {row.id for row in held_out}
    assert {row.id for row in split_held_out(examples, 0.1, 200, seed=4)[1]} != {row.id for row in held_out}


@pytest.mark.parametrize(("rows", "max_rows", "expected"), [(1, 200, 0), (2, 200, 1), (50, 3, 3)])
def test_held_out_count(rows: int, max_rows: int, expected: int) -> None:
    assert len(split_held_out([example(n) for n in range(rows)], 0.1, max_rows, 0)[1]) == expected


def test_a_share_of_the_rows_keeps_order_and_grows() -> None:
    rows = [example(number) for number in range(20)]
    half, most = (draw_share(rows, share, seed=0) for share in (0.5, 0.71))
    assert len(half) == 10 and len(most) == 15 and draw_share(rows, 1.0, seed=0) == rows
    assert [row for row in most if row in half] == half and half != rows[:10]


def make_config(**training: Any) -> RunConfig:
    return parse_config(
        {"domains": DOMAINS, "training": training, "measure": {"held_out_fraction": 0.3, "max_rows_per_domain": 3}}
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(str(tmp_path), "run")
    for domain in DOMAINS:
        seeds = [Seed(f"Seed {row}", "with input", f"answer {row}") for row in range(8)]
        run_dir.write_examples(domain, [example(number, domain) for number in range(10)], [])
        run_dir.write_seeds(domain, used=seeds[:3], held_out=seeds[3:])
        run_dir.write_manifest(run_dir.data(domain), {}, {}, {}, 0)
    return run_dir


def ids(rows: list[Example]) -> list[str]:
    return [row.id for row in rows]


def test_rows_to_measure_are_those_held_out_and_the_seeds_not_shown(run_dir: RunDir) -> None:
    found = unseen_examples(make_config(), DOMAINS, run_dir)
    assert {row_set: len(rows) for row_set, rows in found.items()} == {"held_out": 6, "seeds": 6}
    assert {row.instruction for row in found["seeds"]} == {"Seed 3", "Seed 4", "Seed 5"}
    assert ids(found["seeds"])[:3] == [f"math/unseen-seed/{number}" for number in range(3)]


def test_no_row_is_trained_on_and_measured(run_dir: RunDir) -> None:
    config = make_config(sources=["synthetic", "seeds"])
    trained = {domain: training_examples(config, domain, run_dir) for domain in DOMAINS}
    unseen = [row for rows in unseen_examples(config, DOMAINS, run_dir).values() for row in rows]
    seen = [row for rows in trained.values() for row in rows]
    assert not set(ids(seen)) & set(ids(unseen)) and len(seen) == 2 * (7 + 3)
    assert ids(trained["math"])[-3:] == [f"math/seed/{number}" for number in range(3)]
    assert not {(row.domain, row.instruction) for row in seen} & {(row.domain, row.instruction) for row in unseen}


def test_a_smaller_share_trains_on_fewer_of_the_same_rows(run_dir: RunDir) -> None:
    whole, half, seeds = (
        training_examples(make_config(**training), "math", run_dir)
        for training in (
            {"sources": ["synthetic"]},
            {"sources": ["synthetic"], "synthetic_share": 0.5},
            {"sources": ["seeds"]},
        )
    )
    assert len(half) == 4 and [row for row in whole if row in half] == half
    assert ids(seeds) == [f"math/seed/{number}" for number in range(3)]


def test_what_is_decided_is_written_and_read_by_later_stages(run_dir: RunDir) -> None:
    config = make_config(sources=["synthetic", "seeds"])
    trained = training_examples(config, "math", run_dir)
    rows = run_dir.read_rows("math")
    assert rows is not None and rows["train"] == ids(trained)
    every = {*ids(run_dir.read_examples("math")), *(f"math/seed/{n}" for n in range(3))}
    every |= {f"math/unseen-seed/{n}" for n in range(5)}
    assert {*rows["train"], *rows["held_out"]} == every and not set(rows["train"]) & set(rows["held_out"])
    moved = rows["train"].pop(0)
    run_dir.write_rows("math", {**rows, "held_out": [moved, *rows["held_out"]]})
    assert ids(training_examples(config, "math", run_dir)) == ids(trained)[1:]
    assert moved in ids(unseen_examples(config, ["math"], run_dir)["held_out"])


def test_other_settings_or_other_data_are_decided_anew(run_dir: RunDir) -> None:
    config = make_config(sources=["synthetic"])
    assert len(training_examples(config, "math", run_dir)) == 7
    more = config.model_copy(update={"measure": config.measure.model_copy(update={"max_rows_per_domain": 1})})
    assert len(training_examples(more, "math", run_dir)) == 9
    run_dir.write_examples("math", [example(number) for number in range(20, 30)], [])
    run_dir.write_manifest(run_dir.data("math"), {"seed": 1}, {}, {}, 0)
    assert {row.id for row in training_examples(more, "math", run_dir)} <= {example(n).id for n in range(20, 30)}


def test_a_run_without_unseen_rows_is_refused(run_dir: RunDir) -> None:
    for domain in DOMAINS:
        run_dir.write_seeds(domain, run_dir.read_seeds(domain, held_out=False), [])
        run_dir.write_examples(domain, run_dir.read_examples(domain)[:1], [])
    with pytest.raises(UserError, match="no row is left"):
        unseen_examples(make_config(), DOMAINS, run_dir)


def test_a_run_without_rows_to_train_on_is_refused(run_dir: RunDir) -> None:
    run_dir.write_examples("math", [], [])
    with pytest.raises(UserError, match=r"domain 'math': no row to train on from training.sources = \['synthetic'\]"):
        training_examples(make_config(sources=["synthetic"]), "math", run_dir)
