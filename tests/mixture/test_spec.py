"""What the `mixse` section of a checkpoint may say."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from selfmoe_ray.config import MixtureConfig
from selfmoe_ray.mixture.spec import MixtureSpec


@pytest.mark.parametrize("name", ["math", "math+coding", "v2.1_law-de"])
def test_names_of_experts(name: str) -> None:
    assert MixtureSpec.uniform([name], MixtureConfig()).experts == (name,)


@pytest.mark.parametrize("name", ["../../etc", "a/b", "/root", "..", ".hidden", "a\\b", ""])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="that of its folder"):
        MixtureSpec.uniform([name], MixtureConfig())
