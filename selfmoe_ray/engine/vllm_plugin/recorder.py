"""What the router did, kept in the worker: traces of the requests that ask for one, and totals of all tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfmoe_ray.errors import UserError

ROUTING_KEY = "mixse_routing"
LEVELS = ("mean", "layers")
MAX_BYTES = 256 * 2**20
MAX_SECONDS = 600.0
TOKENS_AT_ONCE = 512


def requested_level(sampling_params: Any) -> str | None:
    """How much of its routing a request asks for: "mean" over layers, "layers", or None for nothing.

    Raises UserError for anything else.
    """
    level = (getattr(sampling_params, "extra_args", None) or {}).get(ROUTING_KEY)
    if level is None or level in LEVELS:
        return level
    raise UserError(f"{ROUTING_KEY} is {level!r}; it must be {' or '.join(LEVELS)}")


@dataclass(frozen=True)
class Rows:
    """Where a request is in a forward pass: rows `first` to `first + count` hold its tokens from `position` on."""

    request: str
    level: str
    first: int
    count: int
    position: int


@dataclass
class Trace:
    """A request's gates as they came, [layers or 1, tokens, n] each; a token computed again replaces the former."""

    chunks: list[tuple[int, Tensor]] = field(default_factory=list)
    nbytes: int = 0
    changed: float = 0.0

    def add(self, position: int, gates: Tensor, now: float) -> None:
        """Gates of the tokens from `position` on."""
        self.chunks.append((position, gates))
        self.nbytes += gates.nbytes
        self.changed = now

    def assemble(self) -> np.ndarray:
        """[layers or 1, tokens, n] float32, NaN where a token was never computed."""
        layers, _, n = self.chunks[0][1].shape
        end = max(position + gates.shape[1] for position, gates in self.chunks)
        whole: np.ndarray = np.full((layers, end, n), np.nan, dtype=np.float32)
        for position, gates in self.chunks:
            whole[:, position : position + gates.shape[1]] = gates.numpy()
        return whole


class GateRecorder:
    """Reads the gates of each forward pass out of a buffer at a fixed address, after the pass.

    gates [layers, max_tokens, n] float32 is written by the pass, tokens first in memory, so that the
    part that a batch fills is contiguous whatever its size: a compiled graph would otherwise be bound
    to the size it was compiled with. In an eager engine layers come first, as there the linears read their
    layer's gates out of it. It is read when the next batch is prepared, or when someone asks:
    the pass itself stays one graph without a branch, and only requests that ask for their routing cost
    a copy.
    """

    def __init__(self, num_layers: int, max_tokens: int, num_experts: int, is_eager: bool = False):
        sizes = (num_layers, max_tokens) if is_eager else (max_tokens, num_layers)
        memory = torch.zeros(*sizes, num_experts, dtype=torch.float32)
        self.gates = memory if is_eager else memory.transpose(0, 1)
        self._buffer = self.gates.transpose(0, 1)
        self.totals = RoutingTotals(num_experts, self.gates.device)
        self.traces: dict[str, Trace] = {}
        self._tokens = 0
        self._rows: list[Rows] = []

    def record(self, gates: Tensor) -> None:
        """Called at the end of the forward pass with the gates of all layers [tokens, layers, n]."""
        self._buffer.narrow(0, 0, gates.shape[0]).copy_(gates)

    def begin_step(
        self, requests: Sequence[str], levels: Sequence[str | None], positions: np.ndarray, tokens: np.ndarray
    ) -> None:
        """Announce the next batch: its requests in row order, each one's first position and number of tokens."""
        self.collect()
        self._tokens = int(tokens.sum())
        if any(levels):
            firsts = np.cumsum(tokens) - tokens
            self._rows = [
                Rows(request, level, int(first), int(count), int(position))
                for request, level, first, count, position in zip(
                    requests, levels, firsts, tokens, positions, strict=True
                )
                if level
            ]

    def collect(self) -> None:
        """Take in the pass that has run since the last call, if one has."""
        if self._tokens:
            self.totals.add(self.gates[:, : self._tokens])
        now = time.monotonic()
        for rows in self._rows:
            gates = self.gates[:, rows.first : rows.first + rows.count]
            if rows.level == "mean":
                gates = gates.mean(0, keepdim=True)
            # Copied even where it is on the CPU: the next pass writes to the buffer again.
            self.traces.setdefault(rows.request, Trace()).add(rows.position, gates.to("cpu", copy=True), now)
        if self._rows:
            self._forget(now)
        self._tokens, self._rows = 0, []

    def take(self, requests: Sequence[str]) -> dict[str, np.ndarray]:
        """Hand over the traces of requests, [layers or 1, tokens, n] by name; unknown ones are left out."""
        self.collect()
        return {name: self.traces.pop(name).assemble() for name in requests if name in self.traces}

    def _forget(self, now: float) -> None:
        """Drop what nobody took: old traces, and the least recently changed ones beyond the memory limit."""
        total = sum(trace.nbytes for trace in self.traces.values())
        for name, trace in sorted(self.traces.items(), key=lambda item: item[1].changed):
            if total <= MAX_BYTES and now - trace.changed <= MAX_SECONDS:
                break
            total -= trace.nbytes
            del self.traces[name]


class RoutingTotals:
    """Sums over all tokens that the engine has computed, kept on the device until someone asks.

    A pass only copies its gates; they are added up some hundred tokens at a time, because the ten
    small operations of it would show in a step that decodes one token for each of a few requests.
    """

    def __init__(self, num_experts: int, device: torch.device):
        self.routed = torch.zeros(num_experts, dtype=torch.float64, device=device)
        # The entropy in nats and the tokens with a gate, which have one.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.tokens = 0
        self._waiting: list[Tensor] = []

    def add(self, gates: Tensor) -> None:
        """Count a pass: gates [layers, tokens, n], which may change afterwards."""
        self.tokens += gates.shape[1]
        self._waiting.append(gates.clone())
        if sum(each.shape[1] for each in self._waiting) >= TOKENS_AT_ONCE:
            self._add_up()

    def _add_up(self) -> None:
        if not self._waiting:
            return
        gates = torch.cat(self._waiting, dim=1)
        self._waiting = []
        shares = gates / gates.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        mean = shares.mean(0)
        self.routed += mean.sum(0)
        entropy = torch.special.entr(mean).sum()
        self.sums += torch.stack([entropy, mean.sum()])

    def read(self) -> dict[str, Any]:
        """`routed` [n]: tokens by expert; `gated`: tokens with any gate; `tokens`: all; `entropy_bits`: a sum."""
        self._add_up()
        entropy, gated = self.sums.tolist()
        return {
            "routed": self.routed.tolist(),
            "gated": gated,
            "tokens": self.tokens,
            "entropy_bits": entropy / math.log(2),
        }


class MixseWorker:
    """What vLLM's `collective_rpc` can ask a worker of a mixture; vLLM mixes it into its worker class."""

    model_runner: Any

    def mixse_take_routing(self, requests: list[str]) -> dict[str, tuple[list[int], bytes]]:
        """Traces by internal request id as (shape, float32 bytes); builtins only, as vLLM's transport wants."""
        recorder = self._mixse_recorder()
        taken = recorder.take(requests) if recorder else {}
        return {name: (list(gates.shape), gates.tobytes()) for name, gates in taken.items()}

    def mixse_routing_totals(self) -> dict[str, Any] | None:
        """`RoutingTotals.read` of this worker; None where nothing is recorded."""
        recorder = self._mixse_recorder()
        if recorder is None:
            return None
        recorder.collect()
        return recorder.totals.read()

    def _mixse_recorder(self) -> GateRecorder | None:
        return self.model_runner.get_model().mixture.recorder
