"""What a pool of engines is given when it has died: fewer items at a time, until the one that ends it is alone."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Generic, TypeVar

# Items of a chunk, by how often the pool has died in a row over the same items; None: all there are.
_CHUNKS = (None, 32, 1)
# Items that may end a pool one after the other, each alone, before the pool itself is held to be broken.
MOST_IN_A_ROW = 3

Key = TypeVar("Key", bound=Hashable)


class Recovery(Generic[Key]):
    """The items of work, by keys of their own, that one pool still owes.

    The item that ended a pool is among those that were in its engines: the first that are not answered, as
    items are taken in order. in_flight: how many that may be; where it proves too few, it grows. restarts: how
    often in a row the pool may die before it is given fewer.
    """

    def __init__(self, items: Iterable[Key], in_flight: int, restarts: int = 0):
        self._owed = dict.fromkeys(items)
        self._in_flight = in_flight
        self._restarts = self._restarts_left = restarts
        self._given: dict[Key, None] = {}
        self._suspects: dict[Key, None] = {}
        self._deaths = self._lost_in_a_row = 0

    @property
    def owed(self) -> Collection[Key]:
        """The items that are neither answered nor given up."""
        return self._owed.keys()

    @property
    def is_done(self) -> bool:
        """Whether every item was answered or given up."""
        return not self._owed

    @property
    def is_hopeless(self) -> bool:
        """Whether the pool ends whatever it is given: several items in a row, each of them alone."""
        return self._lost_in_a_row >= MOST_IN_A_ROW

    def add(self, items: Iterable[Key]) -> None:
        """Owe more, after all that is owed."""
        self._owed |= dict.fromkeys(items)

    def next(self) -> list[Key]:
        """The items to give now; [] while all that may be given are out, and at the end."""
        if self._suspects:
            chosen = [] if self._given else list(self._suspects)[: _CHUNKS[self._deaths]]
        else:
            self._deaths = 0
            is_all_out = len(self._given) == len(self._owed)
            chosen = [] if is_all_out else [key for key in self._owed if key not in self._given]
        self._given |= dict.fromkeys(chosen)
        return chosen

    def answered(self, items: Iterable[Key]) -> list[Key]:
        """Take answers in; returns those that were owed: after a restart one may come twice."""
        new = []
        for key in items:
            if key in self._owed:
                del self._owed[key]
                self._lost_in_a_row, self._restarts_left = 0, self._restarts
                new.append(key)
            self._given.pop(key, None)
            self._suspects.pop(key, None)
        return new

    def died(self) -> list[Key]:
        """The pool has ended; returns the item that is given up for it, if one is to blame."""
        blamed, self._given = list(self._given), {}
        if self._deaths == 0 and self._restarts_left:
            self._restarts_left -= 1
            return []
        if _CHUNKS[self._deaths] == 1:
            return self._give_up(blamed[:1])
        if self._deaths == 0:
            self._suspects = dict.fromkeys(blamed[: self._in_flight])
            self._in_flight *= 2
        else:
            self._suspects = dict.fromkeys(blamed)
        self._deaths += 1
        return []

    def _give_up(self, items: list[Key]) -> list[Key]:
        for key in items:
            del self._owed[key]
            self._lost_in_a_row += 1
            # The others are cleared: the pool goes on with all of them at once.
            self._suspects, self._deaths, self._restarts_left = {}, 0, self._restarts
        return items
