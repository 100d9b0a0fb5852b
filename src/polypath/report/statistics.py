"""Means over seeds with Student-t intervals, and what they say about a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from polypath.errors import InputError
from polypath.report.figures import Series
from polypath.report.outcome import Claim, Held

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean with its interval; all None where a value is not finite, no interval of one value."""

    mean: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """mean ± t · s / √n, with t the two-sided quantile of Student's t at n − 1 degrees.

    Covers the true mean with probability `level` when the values are independent and normal.
    Source: Student 1908. Raises InputError when there are no values.
    """
    from scipy.special import stdtrit

    if not values:
        raise InputError("estimate: no values given; at least one seed is needed")
    if not all(map(math.isfinite, values)):
        return Estimate(None, None, None)
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, None, None)
    t = float(stdtrit(len(values) - 1, (1 + level) / 2))
    half = t * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def paired(ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean difference ours − theirs, seed by seed: what seeds share cancels."""
    if len(ours) != len(theirs):
        raise InputError(f"paired: {len(ours)} values beside {len(theirs)}; one of each per seed")
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)], level)


def judge(
    claim: str,
    source: str,
    baseline: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    better: Literal["lower", "higher"] = "lower",
    threshold: float = 0.0,
    level: float = LEVEL,
) -> Claim:
    """Judge "ours − theirs is below `threshold`" (or above it, where higher is better).

    ours, theirs: one value per seed, in the same order. The rule looks at the interval of the mean
    difference: held is True when all of it is strictly on the claimed side of the threshold, False
    when all of it is strictly on the other, "undecided" when it reaches or crosses the threshold,
    when one seed gives no interval, or when a value is not finite. The claim's `measured` is the
    mean difference.
    """
    mean, low, high = paired(ours, theirs, level)
    if low is None or high is None:
        return Claim(claim, source, baseline, mean, None, len(ours), "undecided")
    below, above = high < threshold, low > threshold
    held: Held = "undecided"
    if below or above:
        held = below if better == "lower" else above
    return Claim(claim, source, baseline, mean, (low, high), len(ours), held)


def series(
    name: str, x: Sequence[float], runs: Sequence[Sequence[float]], level: float = LEVEL
) -> Series:
    """A line with its band: runs[seed][i] was measured at x[i]."""
    points = [estimate(values, level) for values in zip(*runs, strict=True)]
    return Series(
        name=name,
        x=list(x),
        mean=[point.mean for point in points],
        low=[point.low for point in points],
        high=[point.high for point in points],
    )
