"""In which order rows are learnt: optimizer steps, learning rates, micro-batches. Pure."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from selfmoe_ray.config import OptimizerConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class Schedule:
    """The optimizer steps that one learner (an expert, or the router) would take alone.

    batches: the row indexes of each step. learning_rates: one a step.
    """

    batches: tuple[tuple[int, ...], ...]
    learning_rates: tuple[float, ...]

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        return len(self.batches)


def make_schedule(num_rows: int, optimizer: OptimizerConfig, seed: int, name: str) -> Schedule:
    """Shuffled batches and their learning rates.

    Every epoch has its own shuffle, drawn from seed, name and epoch only. The last batch of an
    epoch may be smaller; a fraction of an epoch is rounded up to whole steps.
    """
    steps_per_epoch = math.ceil(num_rows / optimizer.batch_size)
    steps = math.ceil(steps_per_epoch * optimizer.epochs)
    batches: list[tuple[int, ...]] = []
    for epoch in range(math.ceil(optimizer.epochs)):
        order = list(range(num_rows))
        random.Random(f"{seed}/{name}/{epoch}").shuffle(order)
        starts = range(0, num_rows, optimizer.batch_size)
        batches += [tuple(order[start : start + optimizer.batch_size]) for start in starts]
    rates = tuple(learning_rate(step, steps, optimizer) for step in range(steps))
    return Schedule(tuple(batches[:steps]), rates)


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig) -> float:
    """The rate of step 0 <= step < steps: linear warm-up to the peak, then the schedule towards zero."""
    warmup = math.ceil(optimizer.warmup_ratio * steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[optimizer.schedule]
    return optimizer.learning_rate * factor


@dataclass(frozen=True)
class StepRow:
    """A row of one optimizer step: whose it is, which, its length in tokens, and its loss weight.

    The loss is the sum over rows of weight times the row's summed token NLL. A padding row has weight 0.
    """

    learner: int
    row: int
    length: int
    weight: float


def step_rows(
    step: int,
    schedules: Sequence[Schedule],
    lengths: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
) -> list[StepRow]:
    """All rows of a fused step: a full batch of every learner that is not finished.

    lengths and targets: tokens and response tokens of each learner's rows. A weight is 1 / (the
    learner's response tokens in this step), so each learner's loss is its own mean over tokens.
    """
    rows: list[StepRow] = []
    for learner, schedule in enumerate(schedules):
        if step >= schedule.steps:
            continue
        batch = schedule.batches[step]
        weight = 1.0 / sum(targets[learner][row] for row in batch)
        rows += [StepRow(learner, row, lengths[learner][row], weight) for row in batch]
    return rows


def micro_batches(rows: Sequence[StepRow], workers: int, size: int) -> list[list[list[StepRow]]]:
    """[worker][turn]: micro-batches of at most `size` rows, of similar length, the longest first.

    Every worker gets the same number of turns, and the workers' micro-batches of one turn are
    neighbours in length, so that none waits long. With fewer rows than micro-batches the missing
    ones hold the shortest row with weight 0.
    """
    ordered = sorted(rows, key=lambda row: (-row.length, row.learner, row.row))
    count = math.ceil(len(rows) / size)
    count = math.ceil(count / workers) * workers
    last = ordered[-1]
    padding = StepRow(last.learner, last.row, last.length, 0.0)
    groups = [group or [padding] for group in split_evenly(ordered, count)]
    return [groups[worker::workers] for worker in range(workers)]


def split_evenly(items: Sequence[Item], parts: int) -> list[list[Item]]:
    """Cut into consecutive parts whose sizes differ by at most one, the larger first."""
    size, extra = divmod(len(items), parts)
    ends = [part * size + min(part, extra) for part in range(parts + 1)]
    return [list(items[start:end]) for start, end in itertools.pairwise(ends)]
