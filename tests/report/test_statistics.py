"""Intervals against scipy and closed forms; the rule that judges claims."""

import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.report import estimate, judge, paired, series

values = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


@given(values, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_that_of_scipy(values: list[float], level: float) -> None:
    n, mean = len(values), math.fsum(values) / len(values)
    sem = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    low, high = (mean, mean)
    if sem > 1e-9:
        low, high = scipy.stats.t.interval(level, n - 1, loc=mean, scale=sem)
    assert estimate(values, level) == pytest.approx((mean, low, high), abs=1e-6)


def test_two_values_have_a_closed_form() -> None:
    # One degree of freedom is the Cauchy distribution: t = tan(π · level / 2).
    half = math.tan(math.pi * 0.95 / 2) * 1.0
    assert estimate([3.0, 5.0]) == pytest.approx((4.0, 4.0 - half, 4.0 + half))


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    samples = scipy.stats.norm.rvs(loc=2, scale=3, size=(2000, 5), random_state=0).tolist()
    covered = [low < 2 < high for _, low, high in map(estimate, samples)]
    assert 0.935 < sum(covered) / len(covered) < 0.965


def test_pairing_cancels_what_seeds_share() -> None:
    shared = [0.0, 50.0, -20.0]
    ours = [s + d for s, d in zip(shared, [1.0, 2.0, 3.0], strict=True)]
    assert paired(ours, shared) == pytest.approx(estimate([1.0, 2.0, 3.0]))
    p = scipy.stats.ttest_rel(ours, shared).confidence_interval(0.95)
    assert paired(ours, shared)[1:] == pytest.approx((p.low, p.high))


@pytest.mark.parametrize(
    ("differences", "better", "threshold", "held"),
    [
        ([-1.0, -1.1, -0.9], "lower", 0.0, True),
        ([-1.0, -1.1, -0.9], "higher", 0.0, False),
        ([1.0, 1.1, 0.9], "lower", 0.0, False),
        ([1.0, 1.1, 0.9], "higher", 0.0, True),
        ([-1.0, 1.1, 0.2], "lower", 0.0, "undecided"),
        ([-1.0, -1.1, -0.9], "lower", -1.05, "undecided"),
        ([-1.0, -1.1, -0.9], "lower", -2.0, False),
        ([-1.0], "lower", 0.0, "undecided"),
        ([0.0, 0.0, 0.0], "lower", 0.0, "undecided"),
        ([-1.0, math.nan, -1.0], "lower", 0.0, "undecided"),
        ([-1.0, -math.inf, -1.0], "lower", 0.0, "undecided"),
    ],
)
def test_a_claim_is_judged_by_its_interval(differences, better, threshold, held) -> None:
    claim = judge("c", "s", "b", differences, [0.0] * len(differences), better, threshold)
    assert claim.held == held
    assert claim.seeds == len(differences)
    if all(map(math.isfinite, differences)):
        assert claim.measured == pytest.approx(sum(differences) / len(differences))
    else:
        assert claim.measured is None


def test_undecided_means_that_the_threshold_is_inside() -> None:
    claim = judge("c", "s", "b", [0.1, 0.3], [0.0, 0.0])
    low, high = claim.interval
    assert low <= 0 <= high
    assert judge("c", "s", "b", [0.1, 0.3], [0.0, 0.0], threshold=high).held == "undecided"
    above = math.nextafter(high, math.inf)
    assert judge("c", "s", "b", [0.1, 0.3], [0.0, 0.0], threshold=above).held is True


def test_series_estimates_point_by_point() -> None:
    runs = [[1.0, 2.0, math.nan], [3.0, 2.5, 1.0]]
    line = series("moe", [10, 20, 30], runs)
    for i, point in enumerate(zip(*runs, strict=True)):
        assert (line.mean[i], line.low[i], line.high[i]) == estimate(point)
    assert line.x == [10, 20, 30]


def test_one_seed_has_a_line_and_no_band() -> None:
    line = series("moe", [10, 20], [[1.0, 2.0]])
    assert line.mean == [1.0, 2.0]
    assert line.low == line.high == [None, None]


def test_seeds_have_to_match() -> None:
    with pytest.raises(InputError, match="3 values beside 2"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(InputError, match="at least one seed"):
        estimate([])
