"""Every system on every benchmark, resumable by shard. No Ray: who answers is handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from selfmoe_ray.evaluation.harness import Item, ItemId, LoadedBenchmark
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Made, Making, Product, begin, finish


@dataclass(frozen=True)
class EvaluationSettings:
    """What a score depends on beside its system and its benchmark.

    mixture: a hash of what was evaluated; the gates' names mean something only for it.
    """

    mixture: str
    dtype: str
    max_model_len: int


@dataclass(eq=False)
class Cell:
    """One system on one benchmark; gate: of the system's requests.

    done: the items scored so far; seconds: engine time since the evaluation was last taken up.
    """

    system: str
    gate: str
    benchmark: LoadedBenchmark
    done: dict[ItemId, Item] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """As the command line and the folders name it."""
        return f"{self.system}/{self.benchmark.benchmark.name}"

    @property
    def missing(self) -> list[ItemId]:
        """The items that have no score yet, in order."""
        return [item for item in self.benchmark.items if item not in self.done]


@dataclass(frozen=True)
class Shard:
    """Items of a cell that one worker answers together."""

    cell: Cell
    items: Sequence[ItemId]

    @property
    def requests(self) -> list[Any]:
        """lm-eval's requests of the items."""
        return self.cell.benchmark.requests(self.items)


@dataclass(frozen=True)
class Answers:
    """The answers to a shard's requests, in order, and the seconds that an engine took for them."""

    shard: Shard
    responses: Sequence[Any]
    seconds: float


# Takes shards and yields their answers, in any order.
Answer = Callable[[Iterable[Shard]], Iterator[Answers]]


class Evaluation:
    """The cells of an evaluation and what the run's folder holds of them."""

    def __init__(self, cells: Sequence[Cell], settings: EvaluationSettings, run_dir: RunDir, emit: Emit):
        """Reads the finished shards. Raises UserError where a cell was evaluated with other settings."""
        self.settings = settings
        self._run_dir = run_dir
        self._emit = emit
        of_folder = {self._folder(cell): cell for cell in cells}
        self._todo = begin([self._product(cell) for cell in cells], run_dir)
        self.unfinished = [of_folder[product.folder] for product in self._todo]
        for cell in self.unfinished:
            cell.done = self._read_done(cell)

    def run(self, answer: Answer, shard_size: int) -> None:
        """Score all that has no score yet; a shard is on record as soon as it is answered."""
        finish(self._todo, self._score(answer, shard_size), self._run_dir)

    def _score(self, answer: Answer, shard_size: int) -> Making:
        for cell in self.unfinished:
            if not cell.missing:
                yield from self._make(cell)
        start, done = time.monotonic(), 0
        left = sum(len(cell.missing) for cell in self.unfinished)
        for answers in answer(self._shards(shard_size)):
            cell = answers.shard.cell
            self._keep(answers)
            done += len(answers.shard.items)
            self._emit(
                "eval",
                system=cell.system,
                benchmark=cell.benchmark.benchmark.name,
                items=f"{len(cell.done)}/{len(cell.benchmark.items)}",
                items_per_second=round(len(answers.shard.items) / max(answers.seconds, 1e-3), 2),
                seconds_left=round((time.monotonic() - start) * (left - done) / done),
            )
            if not cell.missing:
                yield from self._make(cell)

    def _shards(self, size: int) -> Iterator[Shard]:
        """A benchmark for all systems, then the next, so that comparisons are there early."""
        for cell in self.unfinished:
            missing = cell.missing
            yield from (Shard(cell, missing[start : start + size]) for start in range(0, len(missing), size))

    def _folder(self, cell: Cell) -> str:
        return self._run_dir.evaluation(cell.system, cell.benchmark.benchmark.name)

    def _product(self, cell: Cell) -> Product:
        settings = {
            **asdict(self.settings),
            "fewshot_seed": cell.benchmark.fewshot_seed,
            "gate": cell.gate,
            "task": cell.benchmark.benchmark.task,
            "limit": cell.benchmark.benchmark.limit,
            "num_fewshot": cell.benchmark.num_fewshot,
            "versions": {"lm_eval": version("lm_eval"), **cell.benchmark.versions},
        }
        return Product(self._folder(cell), settings, (), redo=cell.name, begun=settings, grows="limit")

    def _read_done(self, cell: Cell) -> dict[ItemId, Item]:
        """The finished items, of a smaller limit too; one whose prompt is another now is left out."""
        storage, folder = self._run_dir.storage, self._folder(cell)
        samples = f"{folder}/samples.jsonl"
        files = [*([samples] if storage.exists(samples) else []), *storage.list_files(f"{folder}/parts")]
        rows = [row for file in files for row in storage.read_jsonl(file)]
        items = {(item.task, item.doc_id): item for item in (Item(**row) for row in rows)}
        hashes = cell.benchmark.prompt_hashes
        return {name: item for name, item in items.items() if hashes.get(name) == item.prompt_hash}

    def _keep(self, answers: Answers) -> None:
        shard, cell = answers.shard, answers.shard.cell
        items = cell.benchmark.score(shard.items, answers.responses)
        # By its first item, so that parts of runs with other shard sizes lie side by side.
        first = cell.benchmark.items.index(shard.items[0])
        name = f"{self._folder(cell)}/parts/part-{first:06d}.jsonl"
        self._run_dir.storage.write_jsonl(name, [asdict(item) for item in items])
        cell.done |= zip(shard.items, items, strict=True)
        cell.seconds += answers.seconds

    def _make(self, cell: Cell) -> Making:
        storage, folder = self._run_dir.storage, self._folder(cell)
        items = [cell.done[item] for item in cell.benchmark.items]
        summary = cell.benchmark.summary(items)
        storage.write_json(f"{folder}/scores.json", summary)
        storage.write_jsonl(f"{folder}/samples.jsonl", [asdict(item) for item in items])
        yield Made(folder, {"items": len(items)}, seconds=cell.seconds)
        storage.delete(f"{folder}/parts")
        score = summary["metrics"][summary["metric"]]
        self._emit(
            "eval",
            message="finished",
            system=cell.system,
            benchmark=cell.benchmark.benchmark.name,
            metric=summary["metric"],
            score=score["score"],
            n=score["n"],
        )
