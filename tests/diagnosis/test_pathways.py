"""Pathways against the paper's spelling, a slow edit distance and limiting cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.diagnosis import (
    pathway_distance,
    pathway_distances,
    pathways,
    sample_gates,
    spelled,
    window_pathways,
)
from polypath.errors import InputError
from polypath.routing import Routing

LAYER = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(tuple)
PATHWAY = st.lists(LAYER, min_size=1, max_size=4).map(tuple)


def gates(*layers: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([layer]) for layer in layers]


def slow(a: list, b: list) -> int:
    """The recursion as it is written, row by row."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (one != other)))
    return row[-1]


def symbols(pathway: tuple) -> list:
    whole: list = []
    for layer in pathway:
        whole += [*layer, "-"]
    return whole[:-1]


def test_worked_pathways() -> None:
    (a,) = pathways(gates([0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.6, 0.1]))
    (b,) = pathways(gates([0.45, 0.2, 0.3, 0.05], [0.1, 0.15, 0.25, 0.5]))
    assert (spelled(a), spelled(b)) == ("0,1-2,1", "0,2-3,2")
    for unit in ("experts", "characters"):
        assert pathway_distances([a], [b], unit).tolist() == [[3]]
        assert pathway_distance([a, b], unit) == 3


@pytest.mark.parametrize(
    ("a", "b", "characters", "experts"),
    [
        (((3, 1, 5), (9, 1)), ((3, 5, 1), (9,)), 4, 3),
        (((12,),), ((2,),), 1, 1),
        (((12,),), ((34,),), 2, 1),
    ],
)
def test_the_unit_matters(a: tuple, b: tuple, characters: int, experts: int) -> None:
    assert pathway_distances([a], [b], "characters").item() == characters
    assert pathway_distances([a], [b]).item() == experts


@given(st.lists(PATHWAY, min_size=2, max_size=5))
def test_distances_are_those_of_the_recursion(found: list) -> None:
    wanted = [[slow(symbols(a), symbols(b)) for b in found] for a in found]
    assert pathway_distances(found).tolist() == wanted
    wanted = [[slow(list(spelled(a)), list(spelled(b))) for b in found] for a in found]
    assert pathway_distances(found, unit="characters").tolist() == wanted


@given(st.lists(PATHWAY, min_size=3, max_size=3))
def test_a_distance_is_one(found: list) -> None:
    d = pathway_distances(found)
    assert d.diagonal().tolist() == [0, 0, 0] and torch.equal(d, d.T)
    assert d[0, 2] <= d[0, 1] + d[1, 2]
    assert int(d.max()) <= max(len(symbols(path)) for path in found)


@given(st.lists(st.tuples(LAYER, LAYER, LAYER), min_size=2, max_size=4))
def test_layers_alone_are_at_least_as_far_apart_in_sum(found: list) -> None:
    parts = sum(pathway_distances([(path[i],) for path in found]) for i in range(3))
    assert bool((pathway_distances(found) <= parts).all())


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_shortens_a_pathway(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    drawn = torch.rand(5, 6, generator=torch.Generator().manual_seed(seed))
    layers = [drawn / drawn.sum(1, keepdim=True)]
    for short, long in zip(pathways(layers, low), pathways(layers, high), strict=True):
        assert long[0][: len(short[0])] == short[0]


def test_the_ends_of_the_threshold() -> None:
    layer = torch.tensor([[0.5, 0.0, 0.3, 0.2]])
    assert pathways([layer], 0.0) == [((0,),)]
    assert pathways([layer], 1.0) == [((0, 2, 3),)]
    assert pathways([layer], 0.5) == [((0,),)]  # reached, not passed
    with pytest.raises(InputError, match=r"threshold=1\.5"):
        pathways([layer], 1.5)


def test_naming_experts_otherwise_changes_no_distance_of_experts() -> None:
    torch.manual_seed(0)
    layers = [torch.rand(20, 12).softmax(1) for _ in range(3)]
    order = torch.randperm(12)
    renamed = [layer[:, order] for layer in layers]
    # The same naming in every layer, as experts are compared across them.
    assert pathway_distance(pathways(layers)) == pathway_distance(pathways(renamed))


def test_limits() -> None:
    uniform = [torch.full((9, 8), 1 / 8)] * 4
    assert pathway_distance(pathways(uniform)) == 0
    same = [torch.eye(8)[torch.zeros(9).long()]] * 4
    assert pathway_distance(pathways(same)) == 0
    alone = pathways([torch.full((1, 8), 1 / 8)])
    assert math.isnan(pathway_distance(alone))
    torch.manual_seed(0)
    for experts, layers, wanted, bound in ((8, 16, 12.8, 14.0), (64, 16, 15.7, 15.75)):
        drawn = [torch.eye(experts)[torch.randint(experts, (200,))] for _ in range(layers)]
        # Without separators, as the specification counts.
        flat = [(tuple(e for layer in path for e in layer),) for path in pathways(drawn)]
        assert pathway_distance(flat) == pytest.approx(wanted, abs=0.1)
        assert pathway_distance(flat) < bound


def routing(probabilities: torch.Tensor, mask: torch.Tensor | None = None) -> Routing:
    top = probabilities.argmax(1, keepdim=True)
    return Routing(probabilities, top, torch.ones_like(top).float(), probabilities, mask)


def test_a_samples_gate_is_the_mean_over_its_tokens_that_count() -> None:
    p = torch.tensor([[0.2, 0.8], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])
    samples = torch.tensor([1, 0, 1, 0])
    wanted = torch.tensor([[0.55, 0.45], [0.6, 0.4]]).double()
    torch.testing.assert_close(sample_gates(routing(p), samples), wanted)
    mask = torch.tensor([True, True, False, True])
    kept = sample_gates(routing(p, mask), samples)[1]
    torch.testing.assert_close(kept, torch.tensor([0.2, 0.8]).double())
    with pytest.raises(InputError, match="sample 1 has nothing counted"):
        sample_gates(routing(p, torch.tensor([False, True, False, True])), samples)
    bare = Routing(p, torch.zeros(4, 1).long(), torch.ones(4, 1))
    with pytest.raises(InputError, match="has no probabilities"):
        sample_gates(bare, samples)


def test_windows_are_samples_that_lie_one_after_another() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    assert window_pathways({"a": routing(p)}, 2) == [((0,),), ((1,),)]
    with pytest.raises(InputError, match="4 things in a, windows of 3"):
        window_pathways({"a": routing(p)}, 3)
