"""Pools of engines on a Ray cluster that outlive the work given to them, and start anew when they end."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import ray

from selfmoe_ray.config import GenerationResources
from selfmoe_ray.engine import orphans
from selfmoe_ray.engine.plan import EnginePlan, env_vars
from selfmoe_ray.machines.ray_nodes import ask_every_node
from selfmoe_ray.machines.ray_session import beside_driver
from selfmoe_ray.run.events import Emit

_POLL_SECONDS = 1.0
_CLOSE_SECONDS = 60.0
_SWEEP_SECONDS = 30.0

Name = TypeVar("Name", bound=Hashable)


@ray.remote(num_cpus=0)
class Inbox:
    """A queue of work for a pool; None says that no more will come."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._heard = time.monotonic()

    async def put(self, work: Any) -> None:
        """Add work."""
        await self._queue.put(work)

    async def get(self) -> Any:
        """Wait for work."""
        return await self._queue.get()

    async def beat(self) -> None:
        """Take a sign of life from a pool whose next answer is still far."""
        self._heard = time.monotonic()

    async def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._heard


def receive(inbox: Any) -> Iterator[Any]:
    """What arrives in an inbox, until it is closed. For a pool's task."""
    # A task that waits in its main thread gives its CPUs to others, as if its engine did not need them.
    with ThreadPoolExecutor(1) as thread:
        while (work := thread.submit(lambda: ray.get(inbox.get.remote())).result()) is not None:
            yield work


@dataclass(frozen=True)
class Death:
    """Comes in place of a pool's answer when the pool has ended. What it still owes is to be given anew."""

    reason: str


@dataclass
class _Running:
    """A pool's task. heard: when it last answered or was given something, in monotonic seconds."""

    inbox: Any
    stream: Any
    heard: float = field(default_factory=time.monotonic)


class Pools(Generic[Name]):
    """Pools by name; each starts with the first work that it is given, and serves all that follows.

    A pool is one Ray task with a stream of answers, fed through an inbox: starting an engine takes longer than
    a small piece of work. The task ends when the pool closes, and with it all that it has started.

    start: from a pool's name, its inbox and its engines' environment to its task's stream.
    """

    def __init__(
        self,
        stage: str,
        start: Callable[[Name, Any, dict[str, str]], Any],
        plan: EnginePlan,
        resources: GenerationResources,
        emit: Emit,
    ):
        self._stage = stage
        self._start = start
        self._plan = plan
        self._resources = resources
        self._emit = emit
        self._claim = uuid.uuid4().hex
        self._running: dict[Name, _Running] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Let the engines shut down before the devices are anyone else's; after an error, end them at once."""
        if error is not None:
            # A stopped job has three seconds until it is killed.
            for running in self._running.values():
                ray.cancel(running.stream, force=True)
            return
        for running in self._running.values():
            running.inbox.put.remote(None)
        ends = [running.stream.completed() for running in self._running.values()]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=_CLOSE_SECONDS)
            # Ray ends actors without asking them, and some time after their task.
            list(ask_every_node(orphans.sweep_after, self._claim, _SWEEP_SECONDS, seconds=2 * _SWEEP_SECONDS))

    def give(self, name: Name, work: Any) -> None:
        """Put work into a pool's inbox; starts the pool where it does not run."""
        if name not in self._running:
            inbox = Inbox.options(scheduling_strategy=beside_driver()).remote()  # type: ignore[attr-defined]
            self._running[name] = _Running(inbox, self._start(name, inbox, self._environment()))
        running = self._running[name]
        running.inbox.put.remote(work)
        running.heard = time.monotonic()

    def hear(self, busy: Collection[Name]) -> Iterator[tuple[Name, Any]]:
        """The next answer of a pool that owes some, and the `Death` of each that ended or hangs; nothing for a second.

        Raises what a pool's task raised, where a new one would raise it again.
        """
        streams = {self._running[name].stream: name for name in busy if name in self._running}
        ready, silent = ray.wait(list(streams), num_returns=1, timeout=_POLL_SECONDS)
        for stream in ready:
            name = streams[stream]
            try:
                answer = ray.get(next(stream))
            except (ray.exceptions.RayError, StopIteration) as error:
                yield name, self._bury(name, error)
                continue
            self._running[name].heard = time.monotonic()
            yield name, answer
        for stream in silent:
            if self._hangs(streams[stream]):
                hang = TimeoutError(f"no answer for {self._resources.stall_seconds:g} s")
                yield streams[stream], self._bury(streams[stream], hang)

    def _hangs(self, name: Name) -> bool:
        running, longest = self._running[name], self._resources.stall_seconds
        if time.monotonic() - running.heard <= longest:
            return False
        return bool(ray.get(running.inbox.silence.remote()) > longest)

    def _bury(self, name: Name, error: Exception) -> Death:
        if not _is_death(error):
            raise error
        running = self._running.pop(name)
        # With the task go the actors that it made, and with these their engines' processes.
        ray.cancel(running.stream, force=True)
        ray.kill(running.inbox)
        reason = str(error).strip().splitlines()[-1]
        self._emit(self._stage, message=f"an engine pool ended and starts anew: {reason}")
        return Death(reason)

    def _environment(self) -> dict[str, str]:
        is_single_node = sum(node["Alive"] for node in ray.nodes()) == 1
        return env_vars(self._plan, self._resources, is_single_node) | {orphans.CLAIM: self._claim}


def _is_death(error: Exception) -> bool:
    """Whether an engine or its node went away, as opposed to a mistake that would be made again."""
    cause = getattr(error, "cause", None) or error
    deaths = (
        ray.exceptions.RayActorError,
        ray.exceptions.RaySystemError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
        TimeoutError,
    )
    # An actor whose engine never came up ends with this error too.
    return isinstance(cause, deaths) and "in its creation task" not in str(cause)
