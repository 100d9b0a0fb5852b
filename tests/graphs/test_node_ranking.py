import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor

from graphs_at_random import adjacency_of
from polypath.errors import InputError
from polypath.graphs import node_ranking
from polypath.graphs.node_ranking import NodeRanking, correlation, rank_nodes

CUTS = (1, 2, 3, 5)


def test_the_specifications_example() -> None:
    scores = torch.tensor([0.8, 0.1, 0.5, 0.2, 0.0, 0.9])  # the ranking is 5, 0, 2, …
    links = torch.tensor([[6, 6], [2, 5]])
    known = adjacency_of(nx.empty_graph(7))
    found = rank_nodes(lambda pairs: torch.cat([scores, scores[:1]])[pairs[1]], links, known, CUTS)
    assert found.nodes.tolist() == [2, 5, 6]
    own = {name: float(values[2]) for name, values in found.entries().items()}
    assert own["hit@1"] == 1 and own["recall@1"] == 0.5 and own["precision@2"] == 0.5
    assert own["mrr"] == 1
    assert own["ndcg@3"] == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    assert own["ndcg@3"] == pytest.approx(0.9197, abs=5e-5)


def lists_of(scores: np.ndarray, held: nx.Graph, known: nx.Graph) -> dict[int, list[int]]:
    """For each node with a link, the candidates from the best: sorted, one node at a time."""
    return {
        node: sorted(
            (other for other in held if other != node and not known.has_edge(node, other)),
            key=lambda other, node=node: (-scores[node, other], other),
        )
        for node in held
        if held.degree(node)
    }


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([7, 20, 10**6]))
def test_metrics_are_those_of_lists(seed: int, ties: bool, block: int) -> None:
    rng = np.random.default_rng(seed)
    graph = nx.gnp_random_graph(9, 0.5, seed=seed)
    held, known = nx.empty_graph(9), nx.empty_graph(9)
    for n, edge in enumerate(graph.edges):
        (held if n % 3 == 0 else known).add_edge(*edge)
    scores = rng.integers(0, 3, (9, 9)).astype(float) if ties else rng.normal(size=(9, 9))
    truth = torch.tensor(list(held.edges), dtype=torch.int64).reshape(-1, 2).T
    table = torch.from_numpy(scores)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(node_ranking, "BLOCK", block)
        found = rank_nodes(lambda pairs: table[tuple(pairs)], truth, adjacency_of(known), CUTS)
    lists = lists_of(scores, held, known)
    assert found.nodes.tolist() == list(lists)
    for row, (node, ranking) in enumerate(lists.items()):
        true = set(held[node])
        assert float(found.reciprocal_rank[row]) == pytest.approx(
            1 / (1 + min(ranking.index(other) for other in true))
        )
        for column, k in enumerate(CUTS):
            hits = len(true & set(ranking[:k]))
            recall, precision = hits / len(true), hits / k
            f1 = 2 * precision * recall / (precision + recall) if hits else 0
            wanted = (recall, precision, f1, float(hits > 0))
            families = (found.recall, found.precision, found.f1, found.hit)
            assert [float(own[row, column]) for own in families] == pytest.approx(wanted)
            gains = np.array([[float(other in true) for other in ranking]])
            if len(ranking) > 1:
                places = -np.arange(len(ranking), dtype=float)[None]
                assert float(found.ndcg[row, column]) == pytest.approx(
                    ndcg_score(gains, places, k=k)
                )


def test_not_all_pairs_are_scored_at_once() -> None:
    sizes, known = [], adjacency_of(nx.empty_graph(40))

    def score(pairs: Tensor) -> Tensor:
        sizes.append(pairs.shape[1])
        assert (pairs[0] != pairs[1]).all()
        return pairs[1].float()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(node_ranking, "BLOCK", 100)
        rank_nodes(score, torch.tensor([[0, 2, 3, 8], [1, 9, 7, 4]]), known)
    assert sizes == [2 * 39] * 4


def test_entries_are_twenty_six_and_correlate_with_scores() -> None:
    owners, ranks = torch.arange(8), torch.tensor([1, 3, 6, 12, 30, 70, 150, 400])
    found = NodeRanking.of_ranks(owners + 2, ranks)
    assert len(found.entries()) == 26
    scores = torch.randn(10)
    wanted = {
        name: np.corrcoef(scores[2:].numpy(), own.numpy())[0, 1]
        for name, own in found.entries().items()
    }
    assert found.correlations(scores) == pytest.approx(wanted)


@given(st.integers(2, 30), st.floats(-50, 50), st.floats(0.01, 9))
def test_correlations_are_pearsons(count: int, shift: float, scale: float) -> None:
    a, b = torch.randn(2, count)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert correlation(a, a) == pytest.approx(1)
    assert correlation(a, scale * a.double() + shift) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)


def test_a_constant_correlates_with_nothing() -> None:
    a, same = torch.randn(5), torch.full((5,), 0.1)
    assert correlation(a, same) == correlation(same, a) == correlation(same, same) == 0
    assert correlation(a[:0], a[:0]) == 0


def test_wrong_input_is_told() -> None:
    known, edge = adjacency_of(nx.path_graph(4)), torch.tensor([[1], [2]])
    with pytest.raises(InputError, match=r"1 true links are known, the first \(1, 2\)"):
        rank_nodes(lambda pairs: pairs[1].float(), edge, known)
    with pytest.raises(InputError, match="6 of 6 scores of candidates are NaN"):
        rank_nodes(lambda pairs: pairs[1] * math.nan, torch.tensor([[0], [2]]), known)
    with pytest.raises(InputError, match=r"cutoffs=\[0\]"):
        NodeRanking.of_ranks(torch.zeros(1).long(), torch.ones(1).long(), (0,))
