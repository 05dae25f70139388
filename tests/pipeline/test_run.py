"""What a run checks before any work, and what it finds done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.pipeline.run import prepare
from selfmoe_ray.run.events import silent
from selfmoe_ray.run.run_dir import RunDir


def test_prepare_refuses_what_cannot_work(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path), "run")
    few = RunConfig(domains=["math"], generation={"seeds_per_domain": 4})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="domain 'math': 4 seeds to show, but a prompt shows 5"):
        prepare(few, run_dir, silent)
    many = RunConfig(domains=["math"], mixture={"num_experts_per_tok": 2})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_experts_per_tok: 2 asked, but 1 domain"):
        prepare(many, run_dir, silent)


def test_prepare_warns_of_seeds_that_lack_the_domains_shape(tmp_path: Path, tiny_model_dir: Any) -> None:
    folder = tmp_path / "riddles"
    folder.mkdir()
    (folder / "domain.yaml").write_text(
        "name: riddles\ncovers: Riddles.\nrequirements: [One riddle.]\nanswer: Say it.\nshape: multiple_choice\n"
    )
    rows = [f'{{"instruction": "Riddle number {n}, what am I?", "input": "", "output": "A"}}' for n in range(5)]
    (folder / "seeds.jsonl").write_text("\n".join(rows))
    said: list[str] = []
    config = RunConfig(domains=[str(folder)], base_model=str(tiny_model_dir("llama")))
    prepare(config, RunDir(str(tmp_path), "run"), lambda kind, **fields: said.append(fields["message"]))
    assert said and said[0].startswith("warning: 5 of 5 seeds would not pass as generated rows")
