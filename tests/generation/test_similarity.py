from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from selfmoe_ray.generation.similarity import NearDuplicates

WORDS = st.lists(st.sampled_from(list("abcdef")), min_size=1, max_size=12)


def rouge_l(first: str, second: str) -> float:
    """F1 of the longest common subsequence of words, by the textbook recurrence."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (first, second))
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for column, other in enumerate(b, start=1):
            diagonal, row[column] = (
                row[column],
                diagonal + 1 if word == other else max(row[column], row[column - 1]),
            )
    return 2 * row[-1] / (len(a) + len(b))


@given(seen=st.lists(WORDS, max_size=5), words=WORDS, limit=st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_agrees_with_rouge_l(seen: list[list[str]], words: list[str], limit: float) -> None:
    texts = [" ".join(each) for each in seen]
    text = " ".join(words)
    expected = any(rouge_l(each, text) > limit + 1e-9 for each in texts)
    borderline = any(abs(rouge_l(each, text) - limit) <= 1e-9 for each in texts)
    assert borderline or NearDuplicates(limit, texts).has_like(text) == expected


def test_case_and_punctuation_do_not_count() -> None:
    seen = NearDuplicates(0.7, ["How many apples, in all, has Ann?"])
    assert seen.has_like("how many apples in all has ann")
    assert not seen.has_like("How far is it from the harbour to the castle?")


def test_words_beyond_the_surrogates_are_told_apart() -> None:
    seen = NearDuplicates(0.7, [" ".join(f"w{n}" for n in range(60_000))])
    assert not seen.has_like("w55295 w55296 w55297")
    seen.add("w55295 w55296 w55297")
    assert seen.has_like("w55295 w55296 w55297")
    assert not seen.has_like("w55298 w55299 w57000")
