"""Means over rows and domains with their standard errors, and paired differences on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; the error is None where a single row gives no spread."""

    mean: float
    standard_error: float | None


def mean(values: Sequence[float]) -> Estimate:
    """The mean of independent rows; there must be at least one."""
    count = len(values)
    average = math.fsum(values) / count
    if count < 2:
        return Estimate(average, None)
    variance = math.fsum((value - average) ** 2 for value in values) / (count - 1)
    return Estimate(average, math.sqrt(variance / count))


def paired_difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Estimate:
    """The mean of ours minus theirs over the same rows, by row id.

    Pairing removes the spread between easy and hard rows, which is most of it.
    Raises ValueError where the rows differ.
    """
    if ours.keys() != theirs.keys():
        raise ValueError("paired systems must have been measured on the same rows")
    return mean([ours[row] - theirs[row] for row in ours])


def mean_over_domains(estimates: Sequence[Estimate]) -> Estimate:
    """Each domain counts the same, however many rows it has (stratified mean); at least one."""
    count = len(estimates)
    average = math.fsum(estimate.mean for estimate in estimates) / count
    errors = [estimate.standard_error for estimate in estimates if estimate.standard_error is not None]
    if len(errors) < count:
        return Estimate(average, None)
    return Estimate(average, math.sqrt(math.fsum(error**2 for error in errors)) / count)
