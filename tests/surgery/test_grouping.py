import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.surgery.calibration import RoutingSums
from polypath.surgery.grouping import (
    averaged,
    budgets,
    groups_of,
    likeness,
    stable_rank,
    uniform,
)

USAGE = {
    0: torch.tensor([0.70, 0.20, 0.06, 0.04]).double(),
    1: torch.tensor([0.26, 0.25, 0.25, 0.24]).double(),
    2: torch.tensor([0.50, 0.30, 0.15, 0.05]).double(),
}


def test_the_worked_budget() -> None:
    """Property 4."""
    assert budgets(USAGE, 2) == {0: 1, 1: 3, 2: 2}
    assert uniform(USAGE, 2) == {0: 2, 1: 2, 2: 2}
    assert budgets(USAGE, 4) == {0: 4, 1: 4, 2: 4}  # property 2
    assert budgets(USAGE, 1) == {0: 1, 1: 1, 2: 1}
    assert budgets(USAGE, 2, excluded=[0])[0] == 4
    assert budgets(USAGE, 2, excluded=[0]) == {0: 4, 1: 1, 2: 2}  # 0.25 twice: neither is kept
    for wrong in (0.5, 4.5):
        with pytest.raises(InputError, match="from 1 to all of them"):
            budgets(USAGE, wrong)


@given(
    layers=st.integers(1, 4),
    experts=st.integers(1, 6),
    mean=st.integers(1, 6),
    seed=st.integers(0, 30),
)
def test_a_budget_is_met_and_every_layer_keeps_one(
    layers: int, experts: int, mean: int, seed: int
) -> None:
    mean = min(mean, experts)
    drawn = torch.rand(layers, experts, generator=torch.Generator().manual_seed(seed)).double()
    usage = {i: own / own.sum() for i, own in enumerate(drawn)}
    found = budgets(usage, mean)
    assert all(1 <= kept <= experts for kept in found.values())
    assert sum(found.values()) == mean * layers


def test_groups_by_brute_force() -> None:
    usage = torch.tensor([0.4, 0.05, 0.3, 0.15, 0.1])
    alike = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).double()
    groups, dominant = groups_of(usage, 2, alike)
    assert dominant == [0, 2]
    for expert in range(5):
        best = (
            expert if expert in dominant else max(dominant, key=lambda d: float(alike[expert, d]))
        )
        assert dominant[int(groups[expert])] == best


def test_a_full_group_takes_no_more() -> None:
    usage = torch.tensor([0.4, 0.3, 0.2, 0.1])
    alike = torch.zeros(4, 4)
    alike[:, 0] = 1
    assert groups_of(usage, 2, alike)[0].tolist() == [0, 1, 0, 0]
    assert groups_of(usage, 2, alike, most=2)[0].tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match="cannot hold 4 experts"):
        groups_of(usage, 1, alike, most=3)


def test_averages_weigh_by_usage() -> None:
    """Property 3."""
    weights = torch.tensor([[1.0, 0], [0, 1], [0, 3]])
    usage = torch.tensor([0.6, 0.1, 0.1])
    same = torch.zeros(3, dtype=torch.int64)
    (mixed, none) = averaged([weights, None], usage, same, [0])
    assert mixed.tolist() == [[0.75, 0.5]] and none is None
    (lazy,) = averaged([weights], torch.tensor([0.6, 0.0, 0.2]), same, [0])
    torch.testing.assert_close(lazy, torch.tensor([[0.75, 0.75]]))
    (unused,) = averaged([weights], torch.zeros(3), same, [1])
    assert unused.tolist() == [[0, 1]]
    (alone, other) = averaged([weights], usage, torch.tensor([0, 1, 1]), [0, 1])[0]
    assert alone.tolist() == [1, 0] and other.tolist() == [0, 2]


def test_likeness_in_each_way() -> None:
    sums = RoutingSums.empty(3)
    scores = torch.tensor([[1.0, 2, -1], [0, 1, 0.5]]).double()
    sums.squares += scores.T @ scores
    rows, flat = torch.randn(3, 4), torch.randn(3, 7)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        likeness(sums, rows, flat, "scores"), cosine(scores.T[:, None], scores.T[None], dim=-1)
    )
    for by, own in (("rows", rows), ("weights", flat)):
        wanted = cosine(own[:, None].double(), own[None].double(), dim=-1)
        torch.testing.assert_close(likeness(sums, rows, flat, by), wanted)
    drawn = likeness(sums, rows, flat, "random", 3)
    assert torch.equal(drawn, likeness(sums, rows, flat, "random", 3))
    with pytest.raises(InputError, match="unknown similarity"):
        likeness(sums, rows, flat, "names")  # type: ignore[arg-type]


def test_stable_ranks() -> None:
    """Property 9."""
    assert stable_rank(torch.eye(4)) == pytest.approx(4)
    assert stable_rank(torch.outer(torch.randn(5), torch.randn(7))) == pytest.approx(1, abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(100, 90, generator=generator)
    sizes = torch.linalg.svdvals(wide.double())
    assert stable_rank(wide) == pytest.approx(float(sizes.square().sum() / sizes[0] ** 2), rel=1e-4)
    left, right = torch.randn(2, 32, generator=generator)
    shared = torch.outer(left, right) / 12
    parts = torch.randn(4, 32, 32, generator=generator) / 32**0.5
    before = sum(stable_rank(shared + own) for own in parts) / 4
    assert stable_rank(shared + parts.mean(0)) < 0.7 * before
    apart = sum(stable_rank(own) for own in parts) / 4
    assert stable_rank(parts.mean(0)) > 0.8 * apart
