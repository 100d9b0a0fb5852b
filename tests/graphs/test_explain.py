import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.graphs import Incoming
from polypath.graphs.explain import edge_slopes, explain, heaviest_walks
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig

SIZES = st.tuples(st.integers(2, 5), st.integers(0, 9), st.integers(1, 3), st.integers(0, 99))


def drawn(sizes: tuple[int, ...]) -> tuple[Incoming, torch.Tensor]:
    nodes, count, layers, seed = sizes
    torch.manual_seed(seed)
    index, types = torch.randint(nodes, (2, count)), torch.randint(2, (count,))
    return Incoming.of(index, nodes, types, 2), torch.randn(layers, count)


@given(SIZES)
def test_a_wide_beam_finds_every_walk(sizes: tuple) -> None:
    edges, slopes = drawn(sizes)
    wanted = {}
    for length in range(1, len(slopes) + 1):
        for walk in itertools.product(range(len(edges.sources)), repeat=length):
            ends = [int(edges.sources[walk[0]]), *(int(edges.targets[edge]) for edge in walk)]
            starts = [int(edges.sources[edge]) for edge in walk]
            if ends[:-1] == starts and ends[0] == 0 and ends[-1] == 1 and 1 not in starts:
                weights = [
                    sum(float(slopes[first + t, edge]) for t, edge in enumerate(walk))
                    for first in range(len(slopes) - length + 1)
                ]
                named = tuple(
                    (int(edges.sources[e]), int(edges.types[e]), int(edges.targets[e]))
                    for e in walk
                )
                wanted[named] = max([wanted.get(named, -math.inf), max(weights) / length])
    found = heaviest_walks(edges, slopes, 0, 1, beam=10**6)
    assert len(found) == len(wanted)
    assert {walk.edges: walk.importance for walk in found} == pytest.approx(wanted)


@given(SIZES, st.integers(1, 3))
def test_a_beam_keeps_the_best_of_each_length(sizes: tuple, beam: int) -> None:
    edges, slopes = drawn(sizes)
    every = heaviest_walks(edges, slopes, 0, 1, beam=10**6)
    found = heaviest_walks(edges, slopes, 0, 1, beam)
    for length in range(1, len(slopes) + 1):
        own = [walk.importance for walk in every if len(walk.edges) == length]
        kept = [walk.importance for walk in found if len(walk.edges) == length]
        # What is best overall is best to every node on its way: the first of the beam is exact.
        assert min(beam, len(own)) <= len(kept) <= len(own)
        if own:
            assert max(kept) == pytest.approx(max(own))


def test_slopes_are_differences_of_scores() -> None:
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5), torch.arange(2))
    chosen = every[torch.randperm(50)[:12]]  # no two alike, for maxima have a slope then
    edges = Incoming.of(chosen[:, :2].T, 5, chosen[:, 2].clone(), 2)
    model = NBFNet(NBFNetConfig(2, 6, 3)).double()
    slopes = edge_slopes(model, edges, 0, 1, 3)
    head, relation, tail = torch.tensor([0]), torch.tensor([1]), torch.tensor([[3]])
    for layer, place in itertools.product(range(3), range(12)):
        scores = []
        for step in (-1e-6, 1e-6):
            weights = [torch.ones(12).double() for _ in range(3)]
            weights[layer][edges.order[place]] += step
            scores.append(float(model(edges, head, relation, tail, weights).detach()))
        wanted = (scores[1] - scores[0]) / 2e-6
        assert float(slopes[layer, place]) == pytest.approx(wanted, abs=1e-6)


def test_the_only_walk_is_found_and_ranked() -> None:
    # 0 → 1 → 2 → 3, and edges that lead elsewhere; one leaves the tail and comes back.
    index = torch.tensor([[0, 1, 2, 0, 3, 4], [1, 2, 3, 4, 2, 4]])
    model = NBFNet(NBFNetConfig(1, 6, 4, dependent=False))
    walks = explain(model, Incoming.of(index, 5), 0, 0, 3)
    assert [walk.edges for walk in walks] == [((0, 0, 1), (1, 0, 2), (2, 0, 3))]
    assert explain(model, index, 4, 0, 0) == []
    many = explain(model, torch.tensor([[0, 1, 0], [1, 2, 2]]), 0, 0, 2)
    assert [walk.importance for walk in many] == sorted((w.importance for w in many), reverse=True)
    assert len(many) == 2 and explain(model, index[:, :3], 0, 0, 3, count=1) != []


def test_wrong_questions_are_told() -> None:
    model, index = NBFNet(NBFNetConfig(1, 6, 2)), torch.tensor([[0], [1]])
    with pytest.raises(InputError, match="beam=0, count=10; at least 1"):
        explain(model, index, 0, 0, 1, beam=0)
    with pytest.raises(InputError, match="tails have 2; ids are 0 … 1"):
        explain(model, index, 0, 0, 2)
