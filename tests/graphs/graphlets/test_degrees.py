from math import comb

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from graphlet_references import by_subsets, star
from graphs_at_random import adjacency_of, from_networkx, graphs
from polypath.errors import InputError
from polypath.graphs.graphlets import (
    EDGE_PAIRS,
    edge_graphlet_degree_vectors,
    graphlet_degree_vectors,
    orbit_adjacencies,
)
from polypath.graphs.graphlets.degrees import _sums
from polypath.graphs.graphlets.orbits import transposed

HOUSE = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (4, 0), (4, 1)])


def test_the_specifications_rows() -> None:
    under = [3, 2, 2, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0]
    bottom = [2, 3, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    roof = [2, 2, 0, 1, 2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    found = graphlet_degree_vectors(adjacency_of(HOUSE))
    assert found.dtype == torch.int64
    assert found.tolist() == [under, under, bottom, bottom, roof]


@settings(max_examples=100)
@given(graphs(most=8))
def test_nodes_are_on_the_orbits_of_all_subsets(graph: nx.Graph) -> None:
    found = graphlet_degree_vectors(adjacency_of(graph))
    np.testing.assert_array_equal(found.numpy(), by_subsets(graph)[2])


@given(graphs(most=25))
def test_edges_are_on_the_pairs_of_the_matrices(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    orbits = orbit_adjacencies(adjacency)
    i, j = adjacency.edges.numpy()
    found = edge_graphlet_degree_vectors(adjacency)
    assert found.shape == (graph.size(), 12) and found.dtype == torch.int64
    for column, pair in enumerate(EDGE_PAIRS):
        matrix = orbits[pair].toarray()
        if pair[1] != pair[2]:
            matrix = matrix + orbits[transposed(pair)].toarray()
        assert found[:, column].tolist() == matrix[i, j].tolist()


@given(graphs(most=25))
def test_nodes_are_the_sums_of_the_matrices(graph: nx.Graph) -> None:
    """Each orbit from a matrix at two hops or three too, where it has one."""
    found = graphlet_degree_vectors(adjacency_of(graph)).numpy()
    sums = {p: m.sum(1) for p, m in orbit_adjacencies(adjacency_of(graph)).items()}
    for orbit, pair, copies in (
        *((1, (2, 1, 1), 1), (4, (2, 4, 5), 1), (4, (3, 4, 4), 1), (5, (2, 5, 4), 1)),
        *((6, (2, 6, 6), 2), (8, (2, 8, 8), 1), (9, (2, 9, 10), 2), (10, (2, 10, 9), 1)),
        (12, (2, 12, 12), 1),
    ):
        np.testing.assert_array_equal(copies * found[:, orbit], sums[pair])


@pytest.mark.parametrize("leaves", [1, 2, 50, 100_000])
def test_a_star_is_its_closed_form(leaves: int) -> None:
    """100,000 leaves have 10^10 pairs, of which none is looked at."""
    found = graphlet_degree_vectors(star(leaves))
    hub, leaf = [0] * 15, [0] * 15
    hub[0], hub[2], hub[7] = leaves, comb(leaves, 2), comb(leaves, 3)
    leaf[0], leaf[1], leaf[6] = 1, leaves - 1, comb(leaves - 1, 2)
    assert found[0].tolist() == hub
    assert found[1:].unique(dim=0).tolist() == [leaf]
    edges = edge_graphlet_degree_vectors(star(leaves))
    wanted = {(1, 1, 2): leaves - 1, (1, 6, 7): comb(leaves - 1, 2)}
    assert edges.unique(dim=0).tolist() == [[wanted.get(pair, 0) for pair in EDGE_PAIRS]]


def test_sums_that_int64_cannot_hold_are_exact_or_told() -> None:
    starts, half = np.array([0, 2, 2, 5]), 2**62
    values = np.array([3, 4, half, half, half])
    assert _sums(starts, values, 3, 7).tolist() == [2, 0, half]
    assert _sums(starts, values - [0, 0, 1, 1, 1], 2, 7).tolist() == [3, 0, 3 * (half - 1) // 2]
    with pytest.raises(InputError, match=f"node 2 is on orbit 7 of {3 * half} graphlets, more"):
        _sums(starts, values, 1, 7)


@pytest.mark.slow
def test_a_star_that_int64_cannot_count_is_told() -> None:
    for leaves in (3_000_000, 4_000_000):
        edges = star(leaves)
        if comb(leaves, 3) < 2**63:
            assert graphlet_degree_vectors(edges)[0, 7] == comb(leaves, 3)
        else:
            with pytest.raises(InputError, match=f"node 0 is on orbit 7 of {comb(leaves, 3)} "):
                graphlet_degree_vectors(edges)


def test_wrong_input_is_told() -> None:
    for call in (graphlet_degree_vectors, edge_graphlet_degree_vectors):
        with pytest.raises(InputError, match="1 duplicate edges"):
            call(torch.tensor([[0, 1, 0], [1, 0, 1]]))
        with pytest.raises(InputError, match="names node 4"):
            call(from_networkx(HOUSE), 4)
