"""The reasoning seeds are right: the final answer of each puzzle that code can solve is computed."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import count, permutations, product

import pytest

from selfmoe_ray.domains.domain import load_domain
from selfmoe_ray.run.records import Seed

SEEDS = load_domain("reasoning").seeds


def yes(value: bool) -> str:
    return "Yes" if value else "No"


def day(value: date) -> str:
    return value.strftime("%m/%d/%Y")


def weekday_later(weekday: str, days: int) -> str:
    week = list(calendar.day_name)
    return week[(week.index(weekday) + days) % 7]


def order(names: str, rule: Callable[[dict[str, int]], bool]) -> list[str]:
    """The one order of the names whose positions (0 is first) obey the rule."""
    (found,) = (row for row in permutations(names.split()) if rule({name: row.index(name) for name in row}))
    return list(found)


def walk(moves: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(x for x, _ in moves), sum(y for _, y in moves)


def walk_with_right_turns(steps: list[int]) -> tuple[int, int]:
    directions = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    return walk([(x * n, y * n) for (x, y), n in zip(directions, steps, strict=True)])


def truth(names: str, rule: Callable[[dict[str, bool]], bool]) -> dict[str, bool]:
    """The one way to call each person truthful or lying that obeys the rule."""
    keys = names.split()
    worlds = (dict(zip(keys, values, strict=True)) for values in product([True, False], repeat=len(keys)))
    (found,) = (world for world in worlds if rule(world))
    return found


def follows(sets: int, premises: Callable[..., object], conclusion: Callable[..., object]) -> bool:
    """Whether the conclusion holds for all non-empty sets over three things that obey the premises."""
    things = [frozenset(t for t in range(3) if bits >> t & 1) for bits in range(1, 8)]
    return all(conclusion(*world) for world in product(things, repeat=sets) if premises(*world))


def swap(held: dict[str, str], *pairs: tuple[str, str]) -> dict[str, str]:
    for a, b in pairs:
        held[a], held[b] = held[b], held[a]
    return held


def closing(brackets: str) -> str:
    pairs, stack = dict(zip("([{<", ")]}>", strict=True)), []
    for bracket in brackets.split():
        if bracket in pairs:
            stack.append(pairs[bracket])
        else:
            assert stack.pop() == bracket
    return " ".join(reversed(stack))


def sums_of_growing_steps(start: int, steps: Iterator[int], terms: int) -> int:
    return start + sum(next(steps) for _ in range(terms - 1))


def kim_leo_mia(t: dict[str, bool]) -> bool:
    return t["Kim"] and t["Leo"] == (not t["Kim"]) and t["Mia"] == (not t["Leo"])


def ned_ola_pat_quin(t: dict[str, bool]) -> bool:
    return not t["Ned"] and t["Ola"] != t["Ned"] and t["Pat"] != t["Ola"] and t["Quin"] == t["Pat"]


def rob_sue(t: dict[str, bool]) -> bool:
    return t["Rob"] == (not t["Rob"] and not t["Sue"])


PEOPLE = [("Ada", 34, "Lyon"), ("Bo", 28, "Lyon"), ("Cy", 41, "Oslo"), ("Di", 52, "Lyon")]
PRICES = {"saw": 18, "hammer": 12, "drill": 45, "pliers": 9, "wrench": 21}

# The start of an instruction and its answer.
ANSWERS: dict[str, str] = {
    "Evaluate the Boolean": str(not (True and False) or (False and True)),  # noqa: SIM223
    "Find the value": str((True or False) and not (False or True)),  # noqa: SIM222
    "Today is February": day(date(2024, 2, 28) + timedelta(3)),
    "A concert": day(date(2021, 6, 1) - timedelta(10)),
    "In a certain year": weekday_later("Monday", 29 - 3),
    "I have three apples": str(sum({"apple": 3, "banana": 1, "plum": 5}.values())),
    "On a farm": str(sum({"goat": 2, "rabbit": 4}.values())),
    "You face north": yes(walk_with_right_turns([4, 3, 4, 3]) == (0, 0)),
    "If you follow": yes(walk([(-6, 0), (0, 2), (6, 0), (0, -3)]) == (0, 0)),
    "A hiker": str(next(d for d in count() if d * d == 3 * 3 + 4 * 4)),
    "Sort these": " ".join(sorted(["maple", "cedar", "birch", "oak", "ash"])),
    "Put the following": " ".join(sorted(["plant", "plane", "plank", "planet", "plan"])),
    "On a shelf": order("red blue green", lambda at: at["red"] < at["blue"] < at["green"])[0],
    "Four runners": order("Ana Ben Cara Dev", lambda at: at["Dev"] < at["Ana"] < at["Ben"] < at["Cara"])[1],
    "Eve is older": order(
        "Eve Finn Gus Hana", lambda at: at["Eve"] > at["Finn"] > at["Gus"] and at["Hana"] > at["Eve"]
    )[1],
    "Kim tells": yes(truth("Kim Leo Mia", kim_leo_mia)["Mia"]),
    "Each person": yes(truth("Ned Ola Pat Quin", ned_ola_pat_quin)["Quin"]),
    "On an island": "knight" if truth("Rob Sue", rob_sue)["Sue"] else "knave",
    "All roses": yes(follows(3, lambda rose, plant, water: rose <= plant <= water, lambda r, p, w: r <= w)),
    "Premises: all cats": yes(
        follows(3, lambda cat, mammal, sea: cat <= mammal and mammal & sea, lambda cat, mammal, sea: cat & sea)
    ),
    "What number": str(sums_of_growing_steps(3, count(3, 2), 6)),
    "Which letter": chr(sums_of_growing_steps(ord("A"), count(2), 6)),
    "A table lists": str(sum(age > 30 and city == "Lyon" for _, age, city in PEOPLE)),
    "A shop's": sorted(PRICES, key=lambda tool: PRICES[tool])[-2],
    "Alice holds": swap({"Alice": "red", "Bob": "green", "Cleo": "blue"}, ("Alice", "Bob"), ("Bob", "Cleo"))["Cleo"],
    "Uma, Vic": order(
        "Uma Vic Wes Xia", lambda at: at["Uma"] == 0 and abs(at["Vic"] - at["Uma"]) == 1 and at["Wes"] != 3
    )[3],
    "Close all": closing("{ [ ( ) ] <"),
    "A train leaves": "{}:{}".format(*divmod(9 * 60 + 45 + 2 * 60 + 50, 60)),
    "A coin lies": yes(sum([True, False, True, True]) % 2 == 0),
    "A box weighs": str(2 * 3 * 4),
    "Tom was": str(next(h for h in range(9, 17) if h not in {*range(8, 10), *range(10, 13), *range(15, 17)})),
    "In a code": "".join(chr(ord(letter) - 1) for letter in "IPSTF"),
    "A dark drawer": str(next(n for n in count(1) if all(len(set(s)) < n for s in product("bw", repeat=n)))),
    "In a class": str(30 - (18 + 15 - 8)),
    "How many times": str("nevertheless".count("e")),
    "Nia, Oto": order("Nia Oto Pia", lambda owner: owner["Oto"] == 2 and owner["Nia"] != 0)[0],
    "Suppose the sign": str(3 * 4 + 2),
    "A path connects": str(len({((0, 0), (4, 0)), ((4, 0), (4, 3)), ((4, 3), (0, 0))})),
}

# Common sense, not code: answered by hand.
BY_HAND: dict[str, str] = {
    "A vault's alarm": "Yes",
    "Ella pressed": "No",
    "Ruth is the mother": "grandmother",
    "The cable": "the hole",
}


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.instruction[:30])
def test_final_answer(seed: Seed) -> None:
    answers = {**ANSWERS, **BY_HAND}
    (expected,) = (answer for start, answer in answers.items() if seed.instruction.startswith(start))
    found = re.search(r"So the answer is (.+)\.$", seed.output)
    assert found, f"no final answer: {seed.output}"
    assert found[1] == expected


def test_every_entry_of_the_tables_has_its_seed() -> None:
    assert len(ANSWERS) + len(BY_HAND) == len(SEEDS)


def test_yes_and_no_are_about_as_frequent() -> None:
    answers = [seed.output.rsplit(" ", 1)[1] for seed in SEEDS]
    assert abs(answers.count("Yes.") - answers.count("No.")) <= 2
