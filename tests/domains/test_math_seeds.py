"""The math seeds are right: each final answer, and each calculation on the way to it, is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, count, pairwise, permutations, product

import pytest

from selfmoe_ray.domains.domain import load_domain
from selfmoe_ray.run.records import Seed

SEEDS = load_domain("math").seeds
# What ends a chain of equal terms: punctuation, or a word (with its argument, as in log2(4)).
CHAIN_END = re.compile(r"[,;:]|\.(?=\s|$)|\b(?!sqrt\b)[A-Za-z]{2,}\w*(?:\([^)]*\))?")


def root(function: Callable[[Fraction], Fraction], candidates: range = range(-100, 101)) -> int:
    """The one integer among the candidates where the function is zero."""
    (found,) = (value for value in candidates if function(Fraction(value)) == 0)
    return found


def derivative(function: Callable[[float], float], at: float) -> int:
    return round((function(at + 1e-5) - function(at - 1e-5)) / 2e-5)


def integral(function: Callable[[float], float], low: float, high: float, steps: int = 20_000) -> int:
    width = (high - low) / steps
    return round(sum(function(low + (step + 0.5) * width) for step in range(steps)) * width)


def remainder(polynomial: Callable[[int], int], at: int) -> int:
    """Of the division by x - at: what is to be taken off every value so that n - at divides it."""
    return next(r for r in count() if all((polynomial(n) - r) % (n - at) == 0 for n in range(at + 1, at + 99)))


def share(outcomes: list[bool]) -> Fraction:
    return Fraction(sum(outcomes), len(outcomes))


DICE = list(product(range(1, 7), repeat=2))
MARBLES = list(permutations("rrrrrbbb", 2))

# The start of an instruction, and its answer by another way than the seed's where there is one.
ANSWERS: dict[str, object] = {
    "A bakery fills": sum(12 for _ in range(24)) - 35,
    "Lena buys": Fraction(2000 - 3 * 250 - 2 * 120, 100),
    "A jacket": 80 * Fraction(75, 100) * Fraction(110, 100),
    "Yellow and blue": root(lambda blue: blue / (40 - blue) - Fraction(5, 3), range(0, 40)),
    "A train covers": 150 / Fraction("2.5"),
    "One pipe": root(lambda hours: hours / 6 + hours / 3 - 1),
    "Mia scored": root(lambda score: (82 + 90 + 76 + 88 + score) / 5 - 85),
    "Compute 3/4": Fraction(3, 4) + Fraction(5, 6) - Fraction(1, 3),
    "Evaluate 18": 18 - 4 * (7 - 5) ** 2 + 6 // 3,
    "Solve for x": root(lambda x: (5 * x - 7) - (2 * x + 11)),
    "Two numbers": next(a * b for a, b in product(range(15), repeat=2) if a + b == 14 and a - b == 4),
    "Find the positive": root(lambda x: x * x - 5 * x - 14, range(1, 100)),
    "What is the largest integer": max(n for n in range(100) if 3 * n + 4 < 40),
    "Find x if 2^": next(x for x in range(20) if 2 ** (x + 1) == 64),
    "Find x if log2": next(x for x in range(1, 100) if math.log2(x) + math.log2(4) == 7),
    "Let f(x) = 2x + 3": 2 * (3**2) + 3,
    "What is the remainder when x^3": remainder(lambda x: x**3 - 2 * x + 5, 2),
    "Find the sum": sum(range(3, 80, 4)),
    "What is the sum of the infinite": round(sum(8 / 2**n for n in range(60))),
    "A right triangle": 9 + 12 + math.isqrt(9**2 + 12**2),
    "A circle": f"{(10 // 2) ** 2} pi",
    "The length": next(3 * w * w for w in range(48) if 2 * (w + 3 * w) == 48),
    "Each interior": next(n for n in count(3) if (n - 2) * 180 == n * 150),
    "What is the distance": int(math.dist((1, 2), (7, 10))),
    "A line passes": root(lambda b: (3 - b) * 6 - (11 - b) * 2),
    "A pole": root(lambda height: height / 18 - Fraction(2, 3)),
    "In a right triangle the side": Fraction(math.cos(math.asin(5 / 13))).limit_denominator(1000),
    "Two fair dice": share([a + b == 8 for a, b in DICE]),
    "A bag holds": share([pair == ("r", "r") for pair in MARBLES]),
    "How many committees": len(list(combinations(range(8), 3))),
    "In how many different": len(set(permutations("LEVEL"))),
    "Two lights": next(t for t in count(1) if t % 12 == t % 18 == 0),
    "What is the remainder when 7^100": pow(7, 100, 5),
    "How many positive": sum(360 % n == 0 for n in range(1, 361)),
    "Let f(x) = x^3": derivative(lambda x: x**3 - 4 * x**2 + 6, 3),
    "Compute the definite": integral(lambda x: 3 * x**2 + 2 * x, 0, 2),
    "What is the limit": round(((3 + 1e-6) ** 2 - 9) / 1e-6),
    "A farmer": max(x * (20 - x) for x in range(21)),
    "Sara puts": 1000 * Fraction(11, 10) ** 2,
    "Compute the product": int(((2 + 3j) * (2 - 3j)).real),
    "Find the determinant": 3 * 5 - 2 * 4,
    "What is the median": sorted([4, 15, 9, 6, 11])[2],
}


def final_answer(seed: Seed) -> str:
    found = re.search(r"The answer is ([^.]+(?:\.\d+)?)\.$", seed.output)
    assert found, f"no final answer: {seed.output}"
    return found[1]


def evaluate(expression: str) -> float:
    text = re.sub(r"(\d+)!", lambda found: str(math.factorial(int(found[1]))), expression.strip())
    text = re.sub(r"\d+(?:\.\d+)?", lambda found: f"Fraction('{found[0]}')", text)
    text = text.replace("^", "**").replace(")(", ")*(")
    return eval(text, {"Fraction": Fraction, "sqrt": math.sqrt})


def equations(text: str) -> list[tuple[str, str]]:
    """Neighboring sides of each `=` that hold numbers only, without variables."""
    chains = [part.split("=") for part in CHAIN_END.split(text)]
    pairs = [pair for chain in chains for pair in pairwise(chain)]
    return [pair for pair in pairs if all(map(is_numeric, pair))]


def is_numeric(side: str) -> bool:
    return bool(side.strip()) and not re.search("[A-Za-z]", side.replace("sqrt", ""))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.instruction[:30])
def test_final_answer(seed: Seed) -> None:
    (expected,) = (answer for start, answer in ANSWERS.items() if seed.instruction.startswith(start))
    found = final_answer(seed)
    assert (found if isinstance(expected, str) else Fraction(found)) == expected


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.instruction[:30])
def test_calculations_hold(seed: Seed) -> None:
    for left, right in equations(seed.output):
        assert evaluate(left) == evaluate(right), f"{left}={right}"


def test_every_entry_of_the_table_has_its_seed() -> None:
    assert len(ANSWERS) == len(SEEDS)


def test_most_solutions_have_calculations_that_are_checked() -> None:
    assert sum(bool(equations(seed.output)) for seed in SEEDS) >= 0.75 * len(SEEDS)


def test_a_wrong_calculation_is_found() -> None:
    ((left, right),) = equations("She makes 24 * 12 = 289 rolls.")
    assert evaluate(left) != evaluate(right)
