import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given

from graphs_at_random import adjacency_of, all_pairs, graphs
from polypath.errors import InputError
from polypath.graphs import (
    adamic_adar,
    jaccard,
    katz,
    katz_index,
    personalised_pagerank,
    preferential_attachment,
    resource_allocation,
    shared_neighbours,
    shortest_path,
)
from polypath.graphs.heuristics import _from_each, pagerank_rows

BETA = 0.005
DIAMOND = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)])


def test_the_specifications_numbers() -> None:
    corners = torch.tensor([[0], [2]])
    square = adjacency_of(nx.cycle_graph(4))
    assert shared_neighbours(square, corners).item() == 2
    assert adamic_adar(square, corners).item() == pytest.approx(2.885390, abs=1e-6)
    assert resource_allocation(square, corners).item() == 1
    assert shortest_path(square, corners).item() == 2
    assert katz(square, corners).item() == pytest.approx(5e-5)
    rim, diamond = torch.tensor([[1], [3]]), adjacency_of(DIAMOND)
    assert shared_neighbours(diamond, rim).item() == 2
    assert adamic_adar(diamond, rim).item() == pytest.approx(1.820478, abs=1e-6)
    assert resource_allocation(diamond, rim).item() == pytest.approx(0.666667, abs=1e-6)
    assert katz(diamond, rim).item() == pytest.approx(5.025e-5)
    edge, triangle = torch.tensor([[0], [1]]), adjacency_of(nx.complete_graph(3))
    removed = triangle.without(edge)
    assert (shared_neighbours(removed, edge).item(), shortest_path(removed, edge).item()) == (1, 2)


@given(graphs(least=2, most=8))
def test_local_scores_are_those_of_networkx(graph: nx.Graph) -> None:
    pairs = all_pairs(len(graph))
    listed, adjacency = pairs.T.tolist(), adjacency_of(graph)
    for ours, theirs in (
        (adamic_adar, nx.adamic_adar_index),
        (resource_allocation, nx.resource_allocation_index),
        (jaccard, nx.jaccard_coefficient),
        (preferential_attachment, nx.preferential_attachment),
    ):
        wanted = [score for _, _, score in theirs(graph, listed)]
        assert ours(adjacency, pairs).tolist() == pytest.approx(wanted)
    distances = dict(nx.all_pairs_shortest_path_length(graph))
    wanted = [distances[i].get(j, math.inf) for i, j in listed]
    assert shortest_path(adjacency, pairs).tolist() == wanted


@given(graphs(least=2, most=7))
def test_katz_counts_paths(graph: nx.Graph) -> None:
    pairs, adjacency = all_pairs(len(graph)), adjacency_of(graph)
    for length in (1, 2, 3):
        wanted = [
            sum(BETA ** (len(path) - 1) for path in nx.all_simple_paths(graph, i, j, length))
            for i, j in pairs.T.tolist()
        ]
        assert katz(adjacency, pairs, BETA, length).tolist() == pytest.approx(wanted, abs=1e-12)
    dense = nx.to_numpy_array(graph)
    index = np.linalg.inv(np.eye(len(graph)) - BETA * dense) - np.eye(len(graph))
    found = katz_index(adjacency, pairs, BETA).numpy()
    np.testing.assert_allclose(found, index[tuple(pairs.numpy())], atol=1e-12)


def exact_ranks(graph: nx.Graph, damping: float = 0.85) -> np.ndarray:
    """(N, N): PageRank of walks that restart at each node, from the inverse of its equation."""
    dense = nx.to_numpy_array(graph)
    dense[np.diag_indices(len(graph))] += dense.sum(1) == 0
    steps = dense / dense.sum(1, keepdims=True)
    return (1 - damping) * np.linalg.inv(np.eye(len(graph)) - damping * steps)


@given(graphs(least=2, most=8))
def test_pagerank_is_the_solution_of_its_equation(graph: nx.Graph) -> None:
    pairs, ranks = all_pairs(len(graph)), exact_ranks(graph)
    wanted = (ranks + ranks.T)[tuple(pairs.numpy())] / 2
    found = personalised_pagerank(adjacency_of(graph), pairs)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-7)
    assert torch.equal(found, personalised_pagerank(adjacency_of(graph), pairs.flip(0)))


@given(graphs(most=12))
def test_pagerank_is_reversible(graph: nx.Graph) -> None:
    """Why one way is enough: i's rank at j, times i's degree, is j's at i times j's degree."""
    degrees = np.array([max(degree, 1) for _, degree in graph.degree])
    flows = exact_ranks(graph) * degrees[:, None]
    np.testing.assert_allclose(flows, flows.T, atol=1e-12)


@pytest.mark.parametrize(("damping", "tolerance"), [(0.1, 1e-3), (0.85, 1e-10), (0.99, 1e-6)])
@given(graph=graphs(most=12))
def test_rows_of_pagerank_are_within_tolerance(
    damping: float, tolerance: float, graph: nx.Graph
) -> None:
    nodes = np.arange(len(graph))[::-1]
    found = pagerank_rows(adjacency_of(graph), damping, tolerance)(nodes)
    errors = np.abs(found - exact_ranks(graph, damping)[nodes])
    assert errors.sum(1).max() <= tolerance


def test_pagerank_of_hubs_chains_and_parts() -> None:
    """Where degrees differ most, where a walk is slow, and where it ends."""
    graph = nx.disjoint_union_all([nx.star_graph(50), nx.path_graph(60), nx.empty_graph(2)])
    ranks, pairs = exact_ranks(graph), all_pairs(len(graph))
    adjacency = adjacency_of(graph)
    found = pagerank_rows(adjacency)(np.arange(len(graph)))
    assert np.abs(found - ranks).sum(1).max() <= 1e-7 and (found >= 0).all()
    assert found[-1, -1] == pytest.approx(1, abs=1e-7)
    wanted = (ranks + ranks.T)[tuple(pairs.numpy())] / 2
    scores = personalised_pagerank(adjacency, pairs).numpy()
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-7)


def test_pagerank_does_not_depend_on_threads() -> None:
    adjacency, threads = adjacency_of(nx.karate_club_graph()), torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(personalised_pagerank(adjacency, all_pairs(34)))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_rows_in_blocks_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adjacency, pairs = adjacency_of(nx.karate_club_graph()), all_pairs(34)
    pairs = pairs[:, torch.randperm(pairs.shape[1])]
    scores = (katz, katz_index, personalised_pagerank, shortest_path)
    whole = [score(adjacency, pairs) for score in scores]
    monkeypatch.setattr("polypath.graphs.heuristics.BLOCK", 100)
    for score, wanted in zip(scores, whole, strict=True):
        torch.testing.assert_close(score(adjacency, pairs), wanted, rtol=1e-4, atol=1e-7)


def test_a_row_is_computed_once_for_the_end_of_most_pairs() -> None:
    adjacency, matrix = adjacency_of(nx.empty_graph(6)), np.arange(36.0).reshape(6, 6)
    pairs, asked = torch.tensor([[0, 1, 2, 3, 5, 4], [4, 4, 4, 4, 4, 5]]), []

    def rows(nodes: np.ndarray) -> np.ndarray:
        asked.extend(nodes.tolist())
        return (matrix + matrix.T)[nodes]

    found = _from_each(adjacency, pairs, rows).tolist()
    assert asked == [4] and found == [7 * (i + j) for i, j in pairs.T.tolist()]


def test_wrong_input_is_told() -> None:
    adjacency, pairs = adjacency_of(nx.star_graph(4)), torch.tensor([[1], [2]])
    with pytest.raises(InputError, match="length=4"):
        katz(adjacency, pairs, length=4)
    with pytest.raises(InputError, match="below 1 / 4"):
        katz_index(adjacency, pairs, beta=0.25)
    with pytest.raises(InputError, match="damping=1,"):
        personalised_pagerank(adjacency, pairs, damping=1)
    with pytest.raises(InputError, match=r"tolerance=0;"):
        pagerank_rows(adjacency, tolerance=0)
    for score in (shared_neighbours, katz, personalised_pagerank, shortest_path):
        with pytest.raises(InputError, match="a node with itself"):
            score(adjacency, torch.tensor([[1], [1]]))
