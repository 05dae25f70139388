"""Near duplicates by ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rapidfuzz import process
from rapidfuzz.distance import Indel

_WORD = re.compile(r"[^\W_]+")
_FIRST_SURROGATE, _AFTER_SURROGATES = 0xD800, 0xE000


class NearDuplicates:
    """Texts seen so far, and whether another is too like one of them.

    Words become single characters, so that ROUGE-L's F1 = 2 LCS / (m + n) is the normalised indel
    similarity of two short strings, which rapidfuzz computes bit-parallel in C++ and skips where the
    lengths alone rule it out. One query is O(texts x words^2 / 64) at worst, about 2 microseconds a
    pair of 100-word texts, so 5,000 texts against each other take less than a minute on one core.
    """

    def __init__(self, max_rouge_l: float, texts: Iterable[str] = ()):
        self._max_rouge_l = max_rouge_l
        self._codes: dict[str, str] = {}
        self._encoded: list[str] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember a text."""
        self._encoded.append(self._encode(text))

    def has_like(self, text: str) -> bool:
        """Whether a remembered text has a ROUGE-L F1 above the limit; case and punctuation do not count."""
        best = process.extractOne(
            self._encode(text),
            self._encoded,
            scorer=Indel.normalized_similarity,
            processor=None,
            score_cutoff=self._max_rouge_l,
        )
        return best is not None and best[1] > self._max_rouge_l

    def _encode(self, text: str) -> str:
        return "".join(self._code(word) for word in _WORD.findall(text.lower()))

    def _code(self, word: str) -> str:
        code = self._codes.get(word)
        if code is None:
            number = len(self._codes) + 1
            if number >= _FIRST_SURROGATE:
                number += _AFTER_SURROGATES - _FIRST_SURROGATE
            code = self._codes[word] = chr(number)
        return code
