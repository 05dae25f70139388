"""Test items that leaked into generated data, found by the n-grams of words that they share."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """A test item that shares n-grams with generated rows.

    share: of its distinct n-grams that occur in any row, above 0; rows: their ids, in the order given.
    """

    item: str
    share: float
    rows: tuple[str, ...]


def find_overlaps(items: Mapping[str, str], rows: Mapping[str, str], n: int = 13) -> list[Overlap]:
    """The items, by id, of which some n successive words stand in a row; n: 13 is what most reports use.

    Case, punctuation and white space do not count. An item of fewer than n words has to occur as a whole.
    """
    item_grams = {item: set(_grams(_words(text), n)) for item, text in items.items()}
    items_with: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item, grams in item_grams.items():
        for gram in grams:
            items_with[gram].append(item)
    lengths = sorted({len(gram) for gram in items_with})
    matched: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    sources: dict[str, dict[str, None]] = defaultdict(dict)
    for row, text in rows.items():
        words = _words(text)
        for length in lengths:
            for gram in _windows(words, length):
                for item in items_with.get(gram, ()):
                    matched[item].add(gram)
                    sources[item][row] = None
    return [
        Overlap(item, len(matched[item]) / len(item_grams[item]), tuple(sources[item]))
        for item in items
        if item in matched
    ]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return _windows(words, min(n, len(words))) if words else iter(())


def _windows(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))
