"""What the variants of a run are made of."""

from __future__ import annotations

import pytest

from selfmoe_ray.config import RunConfig, TrainingConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.variants import Variant, find_variant
from selfmoe_ray.run.run_dir import RunDir

DOMAINS = ["knowledge", "reasoning", "math", "coding"]
CONFIG = RunConfig(training=TrainingConfig(sources=["synthetic", "seeds"], synthetic_share=0.5))


def find(name: str) -> Variant:
    variant = find_variant(name, CONFIG, DOMAINS)
    assert variant and variant.name == name
    return variant


def test_what_each_is_trained_on_and_how() -> None:
    assert find("first2").experts == ("knowledge", "reasoning")
    assert find("first2").trains == "router" and find("first2").config == CONFIG
    assert find("joint").experts == tuple(DOMAINS) and find("joint").trains == "jointly"
    assert find("instance").experts == ("instance",) and find("instance").config == CONFIG
    assert find("seeds").config.training.sources == ["seeds"] and find("seeds").trains == "experts and router"
    for name in ("data20", "instance20"):
        assert find(name).config.training.synthetic_share == pytest.approx(0.1)
    assert find_variant("mixse", CONFIG, DOMAINS) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first1", "the first is expert-knowledge"),
        ("first4", "all of them are mixse"),
        ("data100", "1 to 99 percent"),
        ("instance150", "1 to 99 percent"),
    ],
)
def test_what_is_the_run_itself_or_cannot_be_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(name)


def test_a_variant_without_synthetic_data_has_no_share_of_it() -> None:
    with pytest.raises(UserError, match=r"training.sources = \['seeds'\]"):
        find_variant("data50", RunConfig(training=TrainingConfig(sources=["seeds"])), DOMAINS)


def test_folders_are_shared_where_the_work_is_equal() -> None:
    run = RunDir("runs", "run")
    first, joint = (find(name).folder(run) for name in ("first2", "joint"))
    assert (first.expert("math"), first.ROUTER, first.MIXSE) == (
        "experts/math",
        "variants/first2/router",
        "variants/first2/mixse",
    )
    assert joint.expert("math") == "variants/joint/experts/math" and joint.data("math") == "data/math"
    assert joint.checkpoints("x").startswith("variants/joint/") and run.ROUTER == "router"
