import networkx as nx
import pytest
import torch
from hypothesis import given

from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.products import (
    EdgeWeights,
    mean_of_neighbours,
    mean_with_self,
    propagate,
    reversed_entries,
    symmetric,
)


def dense(adjacency: Adjacency, weights: EdgeWeights) -> torch.Tensor:
    """(N, N): the matrix that weights stand for."""
    found = torch.zeros(adjacency.num_nodes, adjacency.num_nodes, dtype=torch.float64)
    found[adjacency.sources, adjacency.nodes] = weights.values.double()
    if weights.own is not None:
        found += torch.diag(weights.own.double())
    return found


@given(graphs())
def test_products_and_their_gradients_are_those_of_matrices(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    weights = EdgeWeights(
        torch.randn(len(adjacency.nodes), dtype=torch.float64),  # not symmetric
        torch.randn(len(graph), dtype=torch.float64),
    )
    h = torch.randn(len(graph), 3, dtype=torch.float64, requires_grad=True)
    found = propagate(adjacency, weights.values, h, weights.own)
    wanted = dense(adjacency, weights) @ h
    torch.testing.assert_close(found, wanted)
    slope = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, h, slope)[0], torch.autograd.grad(wanted, h, slope)[0]
    )


@given(graphs())
def test_reversed_entries_are_the_same_edges(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    order = reversed_entries(adjacency)
    assert torch.equal(adjacency.edge_index[:, order], adjacency.edge_index.flip(0))


@given(graphs())
def test_weights_are_those_of_the_formulas(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    matrix = torch.from_numpy(nx.to_numpy_array(graph, weight=None))
    identity = torch.eye(len(graph), dtype=torch.float64)
    degrees = matrix.sum(1)
    half = torch.diag((degrees + 1) ** -0.5)
    torch.testing.assert_close(
        dense(adjacency, symmetric(adjacency)), half @ (matrix + identity) @ half, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        dense(adjacency, mean_of_neighbours(adjacency)),
        matrix / degrees.clamp_min(1)[:, None],
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(
        dense(adjacency, mean_with_self(adjacency)),
        (matrix + identity) / (degrees + 1)[:, None],
        rtol=0,
        atol=1e-6,
    )


def test_normalisation_of_weighted_entries() -> None:
    adjacency = adjacency_of(nx.path_graph(3))  # rows: 0 1, 1 0, 1 2, 2 1
    values = torch.tensor([3.0, 1.0, 2.0, 0.0])
    found = symmetric(adjacency, values)
    torch.testing.assert_close(found.values, torch.tensor([3 / 4, 1 / 4, 2 / 2, 0.0]))
    torch.testing.assert_close(found.own, torch.tensor([1 / 4, 1 / 4, 1.0]))
    means = mean_of_neighbours(adjacency, values).values
    torch.testing.assert_close(means, torch.tensor([1.0, 1 / 3, 2 / 3, 0.0]))


def test_wrong_input_is_told() -> None:
    adjacency = adjacency_of(nx.path_graph(3))
    with pytest.raises(InputError, match=r"values \(3,\); \(3, C\), \(4,\) and \(3,\)"):
        propagate(adjacency, torch.ones(3), torch.ones(3, 2))
    with pytest.raises(InputError, match=r"own \(4,\)"):
        propagate(adjacency, torch.ones(4), torch.ones(3, 2), torch.ones(4))
