"""Shards over engines of which some die; the engines answer a request with itself."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig
from selfmoe_ray.engine.plan import EnginePlan, Pool
from selfmoe_ray.engine.ray_pool import Death
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.cells import Answers, Cell, Shard
from selfmoe_ray.evaluation.ray_engines import EngineJob, Engines
from selfmoe_ray.run.events import silent


@dataclass(frozen=True)
class Numbers:
    """A benchmark whose items are their own requests."""

    name: str = "tiny"

    @property
    def benchmark(self) -> Numbers:
        return self

    def requests(self, items: Any) -> list[Any]:
        return list(items)


@dataclass(frozen=True)
class TracedRequest:
    task_name: str = "tiny_task"


class MortalPools:
    """In the place of Ray: answers work in whatever order, and dies of some requests or at first."""

    def __init__(self, poisonous: Collection[Any] = (), deaths: int = 0):
        self._poisonous = set(poisonous)
        self._deaths = deaths
        self._draws = random.Random(0)
        self.given: dict[int, list[Any]] = {}

    def give(self, name: int, works: list[Any]) -> None:
        self.given.setdefault(name, []).extend(works)

    def hear(self, busy: Collection[int]) -> Iterator[tuple[int, Any]]:
        name = min(busy, key=lambda each: -len(self.given[each]))
        work = self.given[name].pop(self._draws.randrange(len(self.given[name])))
        if self._deaths or self._poisonous & set(work.requests):
            self._deaths = max(0, self._deaths - 1)
            self.given[name].clear()
            yield name, Death("killed")
        else:
            yield name, (work.id, list(work.requests), 1.0)


def make_engines(count: int, pools: MortalPools) -> Engines:
    plan = EnginePlan((Pool(("mixse",), count),), 0, 1, 1, "")
    engines = Engines(EngineJob("run", "mixse", "base", {}), plan, RunConfig(), silent)
    engines._pools = pools  # type: ignore[assignment]
    return engines


def make_shards(systems: int, items: int, size: int) -> list[Shard]:
    cells = [Cell(f"system{number}", "base", Numbers()) for number in range(systems)]  # type: ignore[arg-type]
    return [
        Shard(cell, [(f"task_{cell.system}", row) for row in range(start, min(items, start + size))])
        for cell in cells
        for start in range(0, items, size)
    ]


def take(answers: Iterator[Answers], into: list[Answers]) -> None:
    for each in answers:
        assert list(each.shard.items) == list(each.responses)
        into.append(each)


def items_of(answers: list[Answers]) -> list[Any]:
    return [item for each in answers for item in each.shard.items]


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_engines_that_die_now_and_then_answer_every_shard_once_and_whole(engines: int, deaths: int) -> None:
    shards, answers = make_shards(2, 20, 6), list[Answers]()
    take(make_engines(engines, MortalPools(deaths=deaths)).answer(shards), answers)
    assert sorted(map(str, items_of(answers))) == sorted(str(item) for shard in shards for item in shard.items)
    assert len(answers) == len(shards)


@pytest.mark.parametrize("engines", [1, 3])
def test_items_that_end_engines_are_named_after_all_others_are_answered(engines: int) -> None:
    poisonous = [("task_system0", 7), ("task_system1", 70)]
    shards, answers = make_shards(2, 100, 40), list[Answers]()
    with pytest.raises(UserError) as raised:
        take(make_engines(engines, MortalPools(poisonous)).answer(shards), answers)
    found = items_of(answers)
    assert len(found) == 198 == len(set(found)) and not set(found) & set(poisonous)
    message = str(raised.value)
    assert "system0/tiny, item 7 of task_system0: killed" in message
    assert "system1/tiny, item 70 of task_system1: killed" in message
    assert "what is finished is kept" in message


def test_engines_that_end_whatever_they_are_given_are_given_up() -> None:
    shards = make_shards(1, 100, 40)
    with pytest.raises(UserError, match=r"end whatever they are given(.|\n)*item 2 of task_system0: killed"):
        take(make_engines(1, MortalPools(deaths=1000)).answer(shards), [])


def test_a_trace_that_ends_engines_is_refused_by_its_task() -> None:
    request: Any = TracedRequest()
    with pytest.raises(UserError, match="the routing of tiny_task: killed"):
        make_engines(1, MortalPools([request])).trace([request])
