"""Loading a domain, and what a user is told of each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfmoe_ray.domains.domain import Domain, load_domain, load_domains
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Seed

SETTINGS = {
    "name": "cooking",
    "covers": "Questions of a home cook.",
    "requirements": ["One question.", "English."],
    "answer": "Answer in one sentence.",
    "shape": "free",
}
ROWS = [
    {"instruction": "How long does a soft-boiled egg take?", "input": "", "output": "About six minutes."},
    {"instruction": "Name a herb that goes with tomatoes.", "input": "", "output": "Basil."},
    {"instruction": "Which is sweeter?", "input": "lemon or pear", "output": "The pear.", "source": "own"},
]
ONE_SCREEN = 24


def write(folder: Path, settings: Any = SETTINGS, rows: list[Any] | str = ROWS) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
    lines = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "domain.yaml").write_text(text, encoding="utf-8")
    (folder / "seeds.jsonl").write_text(lines, encoding="utf-8")
    return str(folder)


def message_of(value: str) -> str:
    with pytest.raises(UserError) as caught:
        load_domain(value)
    message = str(caught.value)
    assert len(message.splitlines()) <= ONE_SCREEN
    return message


def changed(**values: Any) -> dict[str, Any]:
    return {**SETTINGS, **values}


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    domain = load_domain(write(tmp_path / "any-name"))
    assert domain == Domain(
        name="cooking",
        covers="Questions of a home cook.",
        requirements=("One question.", "English."),
        answer="Answer in one sentence.",
        shape="free",
        seeds=tuple(Seed(row["instruction"], row["input"], row["output"]) for row in ROWS),
    )


def test_blank_lines_outer_space_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    row = {"instruction": " Boil water?\n", "input": " ", "output": "Yes. "}
    folder = write(tmp_path / "cooking", rows="\ufeff" + json.dumps(row) + "\n\n  \n")
    assert load_domain(folder).seeds == (Seed("Boil water?", "", "Yes."),)


def test_unicode_line_separators_do_not_end_a_row(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "Say\u2028hello", "input": "", "output": "hello"}, ensure_ascii=False)
    assert load_domain(write(tmp_path / "cooking", rows=row)).seeds[0].instruction == "Say\u2028hello"


def test_a_built_in_name_and_a_folder_keep_the_order_of_the_config(tmp_path: Path) -> None:
    names = [domain.name for domain in load_domains(["math", write(tmp_path / "cooking"), "coding"])]
    assert names == ["math", "cooking", "coding"]


def test_unknown_name_offers_the_nearest_and_a_folder() -> None:
    message = message_of("maths")
    assert "'maths' is no built-in domain (nearest: math)" in message
    assert "a folder that holds domain.yaml and seeds.jsonl" in message


def test_unknown_name_that_is_near_to_none_lists_all() -> None:
    assert "(nearest: coding, knowledge, math, reasoning)" in message_of("zzzz")


def test_a_file_is_no_domain(tmp_path: Path) -> None:
    write(tmp_path / "cooking")
    assert "there is a file at" in message_of(str(tmp_path / "cooking" / "domain.yaml"))


@pytest.mark.parametrize("name", ["domain.yaml", "seeds.jsonl"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "cooking")
    (tmp_path / "cooking" / name).unlink()
    assert f"{name} is missing; a domain folder holds domain.yaml and seeds.jsonl" in message_of(folder)


@pytest.mark.parametrize("name", ["domain.yaml", "seeds.jsonl"])
def test_not_utf8(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "cooking")
    (tmp_path / "cooking" / name).write_bytes("name: café".encode("latin-1"))
    message = message_of(folder)
    assert name in message
    assert "not UTF-8 text" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("name: [", "domain.yaml: not valid YAML"),
        ("", "expected the keys name, covers, requirements, answer, shape, found nothing"),
        ("- a\n- b", "expected the keys name, covers, requirements, answer, shape, found a list"),
        (changed(requirement=["x"]), "unknown key 'requirement'; did you mean 'requirements'?"),
        (changed(zzz=1), "unknown key 'zzz'; known: name, covers, requirements, answer, shape"),
        ({k: v for k, v in SETTINGS.items() if k != "answer"}, "missing key 'answer'"),
        (changed(covers=""), "covers: expected text, found nothing"),
        (changed(answer=3), "answer: expected text, found 3"),
        (changed(shape="multiple-choice"), "unknown shape 'multiple-choice'; known: multiple_choice, "),
        (changed(name="My Domain"), "name: 'My Domain' has to be lower-case letters, digits, '_' and '-'"),
        (changed(name="../up"), "name: '../up' has to be lower-case letters"),
        (changed(requirements="English."), "requirements: expected a list of texts, found 'English.'"),
        (changed(requirements=[]), "requirements: expected a list of texts, found nothing"),
        (changed(requirements=["a", {"b": "c"}]), "requirements: item 2 is a mapping, expected text"),
    ],
)
def test_mistakes_in_the_yaml(tmp_path: Path, settings: Any, expected: str) -> None:
    message = message_of(write(tmp_path / "cooking", settings=settings))
    assert str(tmp_path / "cooking" / "domain.yaml") in message
    assert expected in message


def test_all_mistakes_in_the_yaml_are_told_at_once(tmp_path: Path) -> None:
    message = message_of(write(tmp_path / "cooking", settings={"name": "cooking", "shape": "round"}))
    assert "domain.yaml: 4 problem(s) to mend" in message
    assert all(key in message for key in ("covers", "requirements", "answer", "shape"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"instruction": "a', "not valid JSON: "),
        ("[1, 2]", "expected an object with instruction, input, output, found a list"),
        ('{"input": "", "output": "b"}', "missing field 'instruction'"),
        ('{"instruction": "a", "output": "b"}', "missing field 'input' (write \"\" for none)"),
        ('{"instruction": "a", "input": ""}', "missing field 'output'"),
        ('{"instruction": "a", "input": null, "output": "b"}', "input: expected text, found nothing"),
        ('{"instruction": "a", "input": "", "output": 7}', "output: expected text, found 7"),
        (
            '{"instruction": " ", "input": "", "output": "b"}',
            "instruction: expected text, found an empty one",
        ),
        ('{"instruction": "a", "input": "", "output": ""}', "output: expected text, found an empty one"),
        (
            '{"instruction": "a", "input": "", "output": "b", "answer": "b"}',
            "unknown field 'answer'; known: instruction, input, output, source",
        ),
        (
            '{"instruction": "Which is  sweeter?", "input": "lemon or pear", "output": "Neither."}',
            "the same instruction and input as line 3",
        ),
    ],
)
def test_mistakes_in_the_seeds_name_file_and_line(tmp_path: Path, row: str, expected: str) -> None:
    good = "".join(json.dumps(one) + "\n" for one in ROWS)
    message = message_of(write(tmp_path / "cooking", rows=f"{good}\n{row}\n"))
    assert str(tmp_path / "cooking" / "seeds.jsonl") in message
    assert f"seeds.jsonl:5: {expected}" in message


def test_many_mistakes_still_fit_one_screen(tmp_path: Path) -> None:
    message = message_of(write(tmp_path / "cooking", rows="nonsense\n" * 500))
    assert "500 problem(s) to mend" in message
    assert "and 492 more" in message


@pytest.mark.parametrize("rows", ["", "\n \n"])
def test_no_seeds(tmp_path: Path, rows: str) -> None:
    message = message_of(write(tmp_path / "cooking", rows=rows))
    assert "seeds.jsonl: no seeds; add one JSON object a line with instruction, input, output" in message


def test_two_domains_of_one_name(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a" / "cooking"), write(tmp_path / "b" / "cooking")
    with pytest.raises(UserError) as caught:
        load_domains([first, "math", second])
    message = str(caught.value)
    assert f"{first!r} and {second!r} are both named 'cooking'" in message
    assert "change `name` in one domain.yaml or list it once" in message
