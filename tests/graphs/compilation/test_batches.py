from typing import Any

import networkx as nx
import pytest
import torch

from graphs_at_random import adjacency_of, from_networkx
from polypath.errors import InputError
from polypath.graphs.compilation import GraphBatch, neighbourhoods, random_graphs


def test_a_batch_knows_its_nodes_edges_and_positions() -> None:
    weights = torch.zeros(2, 3, 3)
    weights[0, 0, 1] = 0.5
    graphs = GraphBatch.of(weights, torch.tensor([1, 0]), torch.tensor([2, 3]))
    assert graphs.nodes.tolist() == [[True, True, False], [True] * 3]
    assert graphs.edges.nonzero().tolist() == [[0, 0, 1]]
    assert graphs.starts.nonzero().tolist() == [[0, 1], [1, 0]]
    assert graphs.positions[0, :2].tolist() == [0, 0.5]
    assert graphs.positions[1].tolist() == pytest.approx([0, 1 / 3, 2 / 3])


def test_an_edge_index_is_a_batch_of_one() -> None:
    edges = torch.tensor([[0, 2, 1], [1, 0, 1]])
    graphs = GraphBatch.of_edges(edges, 4, source=2, weights=torch.tensor([0.5, 2.0, 7.0]))
    assert graphs.weights[0].nonzero().tolist() == [[0, 1], [2, 0]]
    assert graphs.weights[0, 2, 0] == 2 and graphs.starts.nonzero().tolist() == [[0, 2]]
    assert GraphBatch.of_edges(edges).weights.sum() == 2
    with pytest.raises(InputError, match="of 3 edges"):
        GraphBatch.of_edges(edges, weights=torch.ones(2))


def test_random_graphs_have_the_density_that_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((50,), 20)
    graphs = random_graphs(sizes, generator, 0.3)
    assert torch.equal(graphs.weights, graphs.weights.mT)
    count = float(graphs.edges.sum()) / (50 * 20 * 19)
    assert count == pytest.approx(0.3, abs=4 * (0.21 / (50 * 190)) ** 0.5)
    directed = random_graphs(sizes, generator, 0.3, directed=True)
    both = (directed.edges & directed.edges.mT).sum() / (50 * 20 * 19)
    assert float(both) == pytest.approx(0.09, abs=0.015)
    weighted = random_graphs(sizes, generator, 0.5, weighted=True).weights
    assert torch.equal(weighted, weighted.mT) and 0 < weighted[weighted > 0].min() < 0.01
    assert float(weighted[weighted > 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert len(set(graphs.sources.tolist())) > 10


def test_graphs_are_their_seed() -> None:
    one, same, other = (
        random_graphs(torch.tensor([5, 7]), torch.Generator().manual_seed(seed)).weights
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not one[0, 5:].any() and not one[0, :, 5:].any()


def test_neighbourhoods_are_induced_and_connected() -> None:
    whole = nx.random_regular_graph(3, 40, seed=0)
    generator = torch.Generator().manual_seed(0)
    graphs = neighbourhoods(adjacency_of(whole), 12, 6, generator)
    assert graphs.sizes.tolist() == [12] * 6
    for weights in graphs.weights:
        drawn = nx.from_numpy_array(weights.numpy())
        assert nx.is_connected(drawn) and max(dict(drawn.degree).values()) <= 3
        assert drawn.number_of_edges() >= 11
    small = neighbourhoods(adjacency_of(nx.path_graph(4)), 9, 3, generator)
    assert small.sizes.tolist() == [4] * 3 and small.edges.sum((1, 2)).tolist() == [6] * 3


def test_neighbourhoods_of_a_complete_graph_have_every_edge() -> None:
    whole, generator = adjacency_of(nx.complete_graph(9)), torch.Generator().manual_seed(0)
    graphs = neighbourhoods(whole, 5, 40, generator, directed=True)
    assert (graphs.edges ^ graphs.edges.mT)[:, ~torch.eye(5, dtype=torch.bool)].all()
    assert float(graphs.edges.triu(1).sum()) == pytest.approx(200, abs=40)
    weights = neighbourhoods(whole, 5, 40, generator, weighted=True).weights
    assert torch.equal(weights, weights.mT) and (weights != 0).sum() == 40 * 20
    assert float(weights.sum()) / 800 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": torch.zeros(2, 3, 4)}, r"weights \(2, 3, 4\)"),
        ({"weights": torch.zeros(1, 2, 2, dtype=torch.int64)}, "floating point is right"),
        ({"sources": torch.tensor([0, 1])}, r"sources \(2,\)"),
        ({"sizes": torch.tensor([1.0])}, "sizes .* of torch.float32"),
        ({"sizes": torch.tensor([4])}, r"sizes \[4\]; from 1 to 3"),
        ({"sizes": torch.tensor([2]), "sources": torch.tensor([2])}, r"sources \[2\] in sizes"),
        ({"weights": -torch.ones(1, 3, 3)}, "negative or not finite"),
        ({"weights": torch.eye(3)[None]}, "an edge to itself"),
        ({"weights": 1 - torch.eye(3)[None], "sizes": torch.tensor([2])}, "that is padding"),
    ],
)
def test_wrong_graphs_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GraphBatch.of(**{"weights": torch.zeros(1, 3, 3)} | values)


def test_wrong_draws_are_told() -> None:
    generator = torch.Generator()
    with pytest.raises(InputError, match=r"probability=1\.5"):
        random_graphs(torch.tensor([3]), generator, 1.5)
    empty = adjacency_of(nx.Graph())
    assert from_networkx(nx.Graph()).shape == (2, 0)
    with pytest.raises(InputError, match="no nodes"):
        neighbourhoods(empty, 3, 1, generator)
