"""Where tensors lie in one flat file, and tensors over its bytes."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A cache line; what matrix kernels want of a matrix's first byte.
ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """Names, dtypes and shapes of tensors, in file order."""

    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout that holds these tensors."""
        return cls(
            tuple((name, str(each.dtype).removeprefix("torch."), tuple(each.shape)) for name, each in tensors.items())
        )

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._spans()[-1][1] if self.tensors else 0

    def entry_name(self, key: Mapping[str, Any]) -> str:
        """A file name that stands for a key and this layout."""
        text = json.dumps([key, self.tensors], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def views(self, buffer: mmap.mmap) -> dict[str, Tensor]:
        """The tensors over a mapping of the file; read-only where the mapping is."""
        with warnings.catch_warnings():
            # That the mapping is read-only is the point.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return {
                name: _view(buffer, getattr(torch, dtype), shape, start)
                for (name, dtype, shape), (start, _) in zip(self.tensors, self._spans(), strict=True)
            }

    def _spans(self) -> list[tuple[int, int]]:
        spans, end = [], 0
        for _, dtype, shape in self.tensors:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + math.prod(shape) * getattr(torch, dtype).itemsize
            spans.append((start, end))
        return spans


def _view(buffer: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start).view(shape)
