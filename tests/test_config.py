from __future__ import annotations

from pathlib import Path

import pytest

from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.config_file import load_config

CONFIGS = sorted(Path(__file__).parents[1].glob("jobs/configs/*.yaml"))


def test_the_papers_settings_are_the_defaults() -> None:
    config = RunConfig()
    assert (config.mixture.rank, config.mixture.alpha, config.mixture.num_experts_per_tok) == (8, 16, 1)
    experts = config.training.experts
    assert (experts.learning_rate, experts.epochs, experts.batch_size) == (3e-4, 3, 32)
    brainstorm, respond = config.generation.brainstorm, config.generation.respond
    assert (brainstorm.seeds_in_context, brainstorm.temperature, brainstorm.top_p) == (3, 1.0, 0.98)
    assert (respond.seeds_in_context, respond.temperature) == (5, 0.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load_config(str(path)).run_name


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\ntraining: {experts: {epochs: 2}}\n")
    config = load_config(str(path), ["seed=7", "training.experts.learning_rate=0.001", "domains=[math]"])
    assert (config.seed, config.domains, config.training.experts.epochs) == (7, ["math"], 2)
    assert config.training.experts.learning_rate == 0.001


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"genration": {}}, "genration: unknown setting; did you mean 'generation'?"),
        (
            {"training": {"experts": {"lr": 1}}},
            "training.experts.lr: unknown setting; known: batch_size, epochs",
        ),
        ({"seed": "x"}, "seed: Input should be a valid integer"),
        ({"domains": ["math", "math"]}, "domains: Value error, math is listed more than once"),
        ({"domains": []}, "domains: List should have at least 1 item"),
        ({"mixture": {"rank": 0}}, "mixture.rank: Input should be greater than or equal to 1 (found 0)"),
        ({"run_name": "../up"}, "run_name: String should match pattern"),
    ],
)
def test_each_mistake_is_one_line(values: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(values, "my.yaml")
    first, line = str(caught.value).splitlines()
    assert first == "my.yaml: 1 setting(s) to mend" and expected in line


def test_unreadable_files_and_overrides(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    (tmp_path / "list.yaml").write_text("- 1")
    good = tmp_path / "good.yaml"
    good.write_text("seed: 1")
    cases: list[tuple[str, list[str], str]] = [
        (str(tmp_path / "none.yaml"), [], "cannot read .*No such file"),
        (str(broken), [], "not valid YAML"),
        (str(tmp_path / "list.yaml"), [], "expected a mapping of settings, found list"),
        (str(good), ["seed"], "expected key=value, found 'seed'"),
        (str(good), ["seed.x=1"], "'seed' is a value, not a section"),
        (str(good), ["seed=[1"], r"'\[1' is not valid YAML"),
    ]
    for path, overrides, message in cases:
        with pytest.raises(UserError, match=message):
            load_config(path, overrides)
