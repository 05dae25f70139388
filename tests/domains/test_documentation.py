"""The example of docs/domains.md works as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

from selfmoe_ray.domains.domain import SHAPES, YAML_KEYS, load_domain
from selfmoe_ray.domains.rows import split_seeds

TEXT = (Path(__file__).parents[2] / "docs" / "domains.md").read_text(encoding="utf-8")


def test_the_example_loads(tmp_path: Path) -> None:
    (settings,) = re.findall(r"`my_domains/cooking/domain.yaml`\n\n```yaml\n(.*?)```", TEXT, re.DOTALL)
    (rows,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "domain.yaml").write_text(settings, encoding="utf-8")
    (tmp_path / "seeds.jsonl").write_text(rows, encoding="utf-8")
    domain = load_domain(str(tmp_path))
    assert domain.name == "cooking"
    assert len(split_seeds(domain, used=5, seed=0)[0]) == 5


def test_every_key_and_shape_is_described() -> None:
    assert all(f"| `{name}` |" in TEXT for name in (*YAML_KEYS, *SHAPES))
