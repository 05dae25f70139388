import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.measure.stage import expected_manifest, unseen_examples

DOMAINS = ["math", "coding"]


def test_rows_are_those_held_out_and_the_seeds_not_shown(config, run_dir):
    found = unseen_examples(config, DOMAINS, run_dir)
    assert {row_set: len(examples) for row_set, examples in found.items()} == {"held_out": 6, "seeds": 4}
    assert {example.instruction for example in found["seeds"]} == {"Seed 3", "Seed 4"}


def test_a_run_without_unseen_rows_is_refused(config, run_dir):
    for domain in DOMAINS:
        run_dir.write_seeds(domain, run_dir.read_seeds(domain, held_out=False), [])
        run_dir.write_examples(domain, run_dir.read_examples(domain)[:1], [])
    with pytest.raises(UserError, match="no row is left"):
        unseen_examples(config, DOMAINS, run_dir)


def test_the_measure_depends_on_the_mixture_and_the_data(config, run_dir):
    before = expected_manifest(config, DOMAINS, run_dir)
    run_dir.write_manifest(run_dir.MIXSE, {"rank": 2}, {}, {}, 1.0)
    settings, inputs = expected_manifest(config, DOMAINS, run_dir)
    assert settings == before[0]
    assert [folder for folder in inputs if inputs[folder] != before[1][folder]] == ["mixse"]
