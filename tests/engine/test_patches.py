"""Changes of other libraries: each fits what is installed, and is refused by name where it does not."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest

from selfmoe_ray.engine import patches
from selfmoe_ray.engine.patches import Patch
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.packages import installed_version

PAGE = Path(__file__).parents[2] / "docs" / "patches.md"


class Sampler:
    """Stands for a library's class."""

    limit = 1

    def draw(self, tokens: int) -> int:
        return tokens


DRAW = Patch("pydantic", "1.0", f"{__name__}:Sampler.draw", "", "", ("tokens",))


@pytest.fixture(autouse=True)
def _own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a class of its own to change."""
    copied = type("Sampler", (), {name: value for name, value in vars(Sampler).items() if name in ("limit", "draw")})
    monkeypatch.setattr(f"{__name__}.Sampler", copied)


def renamed_method() -> None:
    del Sampler.draw


def renamed_parameter() -> None:
    Sampler.draw = lambda self, count: count  # type: ignore[assignment,misc]


@pytest.mark.parametrize(
    ("change", "problem"),
    [(renamed_method, "no attribute 'draw'"), (renamed_parameter, "no parameter tokens")],
)
def test_a_target_that_no_longer_fits_is_refused_by_name_and_versions(change: type, problem: str) -> None:
    change()
    left = dict(vars(Sampler))
    with pytest.raises(UserError, match=rf"pydantic {installed_version('pydantic')} .*Sampler.draw .*1\.0.*{problem}"):
        patches.apply(DRAW, lambda original, self, tokens: 0)
    assert dict(vars(Sampler)) == left


def test_a_library_without_the_module_is_refused_too() -> None:
    with pytest.raises(UserError, match=r"No module named 'pydantic\.gone'"):
        patches.checked(replace(DRAW, target="pydantic.gone:draw"))


def test_what_can_be_missed_is_missed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    renamed_parameter()
    patches.apply(replace(DRAW, without="drawing takes longer"), lambda original, self, tokens: 0)
    assert Sampler().draw(5) == 5
    assert "no parameter tokens" in caplog.text and "drawing takes longer" in caplog.text


def test_a_function_gets_what_it_replaces_and_twice_is_once() -> None:
    for _ in range(2):
        patches.apply(DRAW, lambda original, self, tokens: original(self, tokens) + 1)
    assert Sampler().draw(5) == 6
    assert list(inspect.signature(Sampler.draw).parameters) == ["self", "tokens"]


def test_one_instance_can_be_changed_alone() -> None:
    changed = Sampler()
    for _ in range(2):
        patches.apply(DRAW, lambda original, tokens: original(tokens) + 1, on=changed)
    assert (changed.draw(5), Sampler().draw(5)) == (6, 5)


def test_a_change_for_a_block_ends_with_it() -> None:
    limit = Patch("pydantic", "1.0", f"{__name__}:Sampler.limit", "", "")
    with patches.applied(DRAW, lambda original, self, tokens: 0), patches.applied(limit, 2):
        assert (Sampler().draw(5), Sampler.limit) == (0, 2)
    assert (Sampler().draw(5), Sampler.limit) == (5, 1)


@pytest.mark.parametrize("patch", patches.all_patches(), ids=lambda patch: patch.target)
def test_every_change_fits_what_is_installed(patch: Patch) -> None:
    if patch.library != "python":
        pytest.importorskip(patch.library)
        minor = ".".join(str(installed_version(patch.library)).split(".")[:2])
        assert minor in patch.version.split(" and ")
    assert patches.checked(patch) is not None


def test_the_page_says_what_the_code_does() -> None:
    assert PAGE.read_text() == patches.page(), "python -m selfmoe_ray.engine.patches > docs/patches.md"
