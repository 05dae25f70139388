"""A server is refused before its engine starts, by the files and settings alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.serving.config import ServeArgs
from selfmoe_ray.serving.ray_local import trusts_code
from selfmoe_ray.serving.server import preflight
from tests.faulty_bases import edit_json, edited

MixseDir = Callable[..., Path]


def args_of(folder: Path, **given: object) -> ServeArgs:
    return ServeArgs.model_validate({"mixse_dir": str(folder), **given})


def test_an_expert_that_is_called_like_a_gate_is_refused(mixse_dir: MixseDir, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixse_dir(), tmp_path / "mixse"))
    section = json.loads((folder / "config.json").read_text())["mixse"]
    edit_json(folder / "config.json", mixse={**section, "experts": ["knowledge", "top2", "coding"]})
    with pytest.raises(UserError, match="'top2' cannot be a domain's name"):
        preflight(args_of(folder), folder)


def test_a_base_of_another_hash_is_refused(mixse_dir: MixseDir, tiny_model_dir: Callable[..., Path]) -> None:
    folder = mixse_dir()
    with pytest.raises(UserError, match=r"has content hash .* but this"):
        preflight(args_of(folder, base=str(tiny_model_dir("llama", seed=1))), folder)


def test_engines_get_no_more_tokens_than_the_base_has_context(mixse_dir: MixseDir) -> None:
    folder = mixse_dir()
    asked = {None: None, 256: 256, 512: 512, 2048: 512}
    for given, fitted in asked.items():
        args = args_of(folder, engine={"max_model_len": given})
        assert preflight(args, folder).engine.max_model_len == fitted


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "the tokenizer of .* has none"), ("{{ messages[0].nothing.there }}", "cannot be rendered")],
)
def test_a_chat_template_that_answers_no_one_is_refused_where_it_is_asked_for(
    template: str | None,
    message: str,
    mixse_dir: MixseDir,
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = mixse_dir()
    base = edited(tiny_model_dir("llama"), tmp_path / "base", tokenizer_config={"chat_template": template})
    preflight(args_of(folder, base=str(base)), folder)
    with pytest.raises(UserError, match=f"chat_template: base, but .*{message}.*set chat_template: alpaca"):
        preflight(args_of(folder, base=str(base), chat_template="base"), folder)


def test_a_run_tells_whether_its_base_may_run_code(tmp_path: Path) -> None:
    assert not trusts_code(tmp_path)
    (tmp_path / "run.yaml").write_text("trust_remote_code: true\n")
    assert trusts_code(tmp_path)
