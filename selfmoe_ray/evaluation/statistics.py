"""Scores with intervals, and paired comparisons of systems on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from selfmoe_ray.measure.statistics import mean

# Standard errors to each side of a mean that hold 95% of a normal distribution.
Z95 = NormalDist().inv_cdf(0.975)
RESAMPLES = 10_000


@dataclass(frozen=True)
class Score:
    """A mean over n rows; interval: 95%, None where a single row gives no spread."""

    n: int
    mean: float
    standard_error: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """Ours minus theirs over the same n rows; interval: 95%; test: the one that gave the two-sided p_value."""

    n: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    test: str


def score(values: Sequence[float]) -> Score:
    """The score of independent rows, at least one: Wilson's interval where every value is 0 or 1, else the normal."""
    estimate = mean(values)
    if is_proportion(values):
        interval: tuple[float, float] | None = wilson_interval(round(math.fsum(values)), len(values))
    elif estimate.standard_error is None:
        interval = None
    else:
        margin = Z95 * estimate.standard_error
        interval = (estimate.mean - margin, estimate.mean + margin)
    return Score(len(values), estimate.mean, estimate.standard_error, interval)


def is_proportion(values: Sequence[float]) -> bool:
    """Whether every value is 0 or 1."""
    return all(value in (0, 1) for value in values)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion, n at least 1; it stays within 0 and 1, also for none or all."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return float(low), float(high)


def compare(ours: Mapping[str, float], theirs: Mapping[str, float], seed: int) -> Comparison:
    """Ours minus theirs by row id: McNemar's exact test where every value is 0 or 1, else the paired bootstrap.

    The interval is the bootstrap's in both cases; seed: of its draws. Raises ValueError where the rows differ.
    """
    if ours.keys() != theirs.keys() or not ours:
        raise ValueError("paired systems must have been measured on the same rows, at least one")
    # In an order that does not depend on who was measured first, so that the seed decides alone.
    rows = sorted(ours)
    differences = np.array([ours[row] - theirs[row] for row in rows], dtype=np.float64)
    interval, p_value, test = *paired_bootstrap(differences, seed), "paired bootstrap"
    if is_proportion(list(ours.values())) and is_proportion(list(theirs.values())):
        p_value, test = mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), "McNemar"
    return Comparison(len(rows), float(differences.mean()), interval, p_value, test)


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """Two-sided exact p-value of McNemar's test from the counts of rows that only one of the two solved."""
    from scipy.stats import binomtest

    discordant = only_ours + only_theirs
    return float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0


def paired_bootstrap(
    differences: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> tuple[tuple[float, float], float]:
    """95% percentile interval of the mean difference, and the two-sided p-value of its being zero.

    differences: [n], at least one. The p-value is the share of resamples, moved to have mean zero, that
    lie as far out as the observed mean; never below 1 / (resamples + 1).
    """
    generator = np.random.default_rng(seed)
    observed = differences.mean()
    # One resample at a time: all at once would take resamples * n numbers.
    means = np.array([generator.choice(differences, len(differences)).mean() for _ in range(resamples)])
    low, high = (float(np.percentile(means, percent)) for percent in (2.5, 97.5))
    # A resample that is the data in another order may differ in the last bit.
    as_far = np.abs(means - observed) >= np.abs(observed) * (1 - 1e-9)
    return (low, high), float((1 + as_far.sum()) / (1 + resamples))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method, in the order given.

    Rejecting those at most alpha keeps the chance of any false rejection at most alpha.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
