"""The built-in seeds: enough, distinct, short, in one format a domain, and right."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest
from rapidfuzz.distance import LCSseq

from selfmoe_ray.config import FilterConfig
from selfmoe_ray.domains.domain import SHAPES, builtin_names, load_domain
from selfmoe_ray.generation.filters import check_response, check_task
from selfmoe_ray.generation.shapes import SHAPES as CHECKED_SHAPES
from selfmoe_ray.run.records import Seed

BUILTIN = ["coding", "knowledge", "math", "reasoning"]
KNOWLEDGE = load_domain("knowledge").seeds
CODING = load_domain("coding").seeds
MAX_ROUGE_L = 0.7


def rouge_l(a: str, b: str) -> float:
    """F1 of the longest common subsequence of words."""
    first, second = (re.findall(r"\w+", text.lower()) for text in (a, b))
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))


def task(seed: Seed) -> str:
    return f"{seed.instruction}\n{seed.input}"


def test_the_four_domains_are_built_in() -> None:
    assert builtin_names() == BUILTIN
    shapes = {name: load_domain(name).shape for name in BUILTIN}
    assert shapes == {
        "coding": "python_function",
        "knowledge": "multiple_choice",
        "math": "worked_solution",
        "reasoning": "single_answer",
    }
    assert set(shapes.values()) < set(SHAPES)


@pytest.mark.parametrize("name", BUILTIN)
def test_seeds_are_enough_and_short(name: str) -> None:
    seeds = load_domain(name).seeds
    assert len(seeds) >= 36
    lengths = [len(f"{task(seed)}\n{seed.output}".split()) for seed in seeds]
    assert min(lengths) >= 20
    assert max(lengths) <= 130


@pytest.mark.parametrize("name", BUILTIN)
def test_no_two_seeds_are_near_duplicates(name: str) -> None:
    pairs = combinations([task(seed) for seed in load_domain(name).seeds], 2)
    assert [pair for pair in pairs if rouge_l(*pair) > MAX_ROUGE_L] == []


def test_a_near_duplicate_would_be_found() -> None:
    first = task(KNOWLEDGE[0])
    assert rouge_l(first, first.replace("animal", "plant")) > MAX_ROUGE_L


@pytest.mark.parametrize("name", BUILTIN)
def test_no_placeholders(name: str) -> None:
    domain = load_domain(name)
    for seed in domain.seeds:
        assert not re.search(r"\b(TODO|TBD|lorem|foo|placeholder)\b|<\w+>|_{3,}", f"{task(seed)} {seed.output}", re.I)


def test_each_shape_that_a_domain_may_name_has_its_check() -> None:
    assert set(SHAPES) == set(CHECKED_SHAPES)


@pytest.mark.parametrize("name", BUILTIN)
def test_seeds_pass_the_filters_of_generated_rows(name: str) -> None:
    domain = load_domain(name)
    for seed in domain.seeds:
        assert check_task(seed.instruction, seed.input, domain.shape, FilterConfig()) is None
        response = check_response(seed.instruction, seed.input, seed.output, domain.shape, FilterConfig())
        assert response is None, seed


@pytest.mark.parametrize("seed", KNOWLEDGE, ids=lambda seed: seed.instruction[:30])
def test_knowledge_answers_name_one_of_four_options(seed: Seed) -> None:
    options = seed.input.split("\n")
    assert [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]
    assert len({option[3:].lower() for option in options}) == 4
    answer, reason = seed.output.split("\n")
    assert answer in options
    assert reason.endswith(".")


def test_knowledge_answer_letters_are_balanced() -> None:
    letters = Counter(seed.output[0] for seed in KNOWLEDGE)
    assert set(letters) == set("ABCD")
    assert max(letters.values()) - min(letters.values()) <= 1


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)


def with_one_return_changed(code: str) -> list[str]:
    """The code once for each of its return statements, which then returns Ellipsis."""
    returns = sum(isinstance(node, ast.Return) for node in ast.walk(ast.parse(code)))
    mutants = []
    for index in range(returns):
        tree = ast.parse(code)
        changed = [node for node in ast.walk(tree) if isinstance(node, ast.Return)][index]
        changed.value = ast.Constant(...)
        mutants.append(ast.unparse(ast.fix_missing_locations(tree)))
    return mutants


def constant_functions(name: str, asserts: str) -> list[str]:
    """Functions that always return what one of the asserts expects."""
    comparisons = [node.test for node in ast.walk(ast.parse(asserts)) if isinstance(node, ast.Assert)]
    expected = [ast.unparse(node.comparators[0]) for node in comparisons if isinstance(node, ast.Compare)]
    assert len(expected) == 3
    return [f"def {name}(*args):\n    return {value}" for value in expected]


@pytest.mark.parametrize("seed", CODING, ids=lambda seed: seed.instruction[24:50])
def test_coding_solutions_pass_their_asserts_and_wrong_ones_do_not(seed: Seed) -> None:
    asserts = seed.input.split("\n")
    (function,) = (node for node in ast.parse(seed.output).body if isinstance(node, ast.FunctionDef))
    parameters = ", ".join(argument.arg for argument in function.args.args)
    assert f"Python function {function.name}({parameters}) " in seed.instruction
    assert len(asserts) == 3
    assert all(line.startswith("assert ") and f"{function.name}(" in line for line in asserts)
    assert len(seed.output.split("\n")) <= 12

    solved = run_python(f"{seed.output}\n{seed.input}")
    assert solved.returncode == 0, solved.stderr
    wrong = [*with_one_return_changed(seed.output), *constant_functions(function.name, seed.input)]
    survivors = f"""
for code in {wrong!r}:
    try:
        exec(code + "\\n" + {seed.input!r}, {{}})
    except Exception:
        continue
    print(code)
"""
    checked = run_python(survivors)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout + checked.stderr
