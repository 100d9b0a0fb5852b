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


@given(graphs(least=2, most=8))
def test_pagerank_is_the_solution_of_its_equation(graph: nx.Graph) -> None:
    pairs = all_pairs(len(graph))
    dense = nx.to_numpy_array(graph)
    dense[np.diag_indices(len(graph))] += dense.sum(1) == 0
    steps = dense / dense.sum(1, keepdims=True)
    ranks = 0.15 * np.linalg.inv(np.eye(len(graph)) - 0.85 * steps)
    wanted = (ranks + ranks.T)[tuple(pairs.numpy())] / 2
    found = personalised_pagerank(adjacency_of(graph), pairs).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_rows_in_blocks_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adjacency, pairs = adjacency_of(nx.karate_club_graph()), all_pairs(34)
    pairs = pairs[:, torch.randperm(pairs.shape[1])]
    scores = (katz, katz_index, personalised_pagerank, shortest_path)
    whole = [score(adjacency, pairs) for score in scores]
    monkeypatch.setattr("polypath.graphs.heuristics.BLOCK", 100)
    for score, wanted in zip(scores, whole, strict=True):
        torch.testing.assert_close(score(adjacency, pairs), wanted, rtol=1e-4, atol=1e-7)


def test_wrong_input_is_told() -> None:
    adjacency, pairs = adjacency_of(nx.star_graph(4)), torch.tensor([[1], [2]])
    with pytest.raises(InputError, match="length=4"):
        katz(adjacency, pairs, length=4)
    with pytest.raises(InputError, match="below 1 / 4"):
        katz_index(adjacency, pairs, beta=0.25)
    with pytest.raises(InputError, match="damping=1"):
        personalised_pagerank(adjacency, pairs, damping=1)
    for score in (shared_neighbours, katz, personalised_pagerank, shortest_path):
        with pytest.raises(InputError, match="a node with itself"):
            score(adjacency, torch.tensor([[1], [1]]))
