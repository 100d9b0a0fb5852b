from types import SimpleNamespace

import networkx as nx
import pytest
import torch
from hypothesis import given

from graphs_at_random import adjacency_of, all_pairs, from_networkx, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency, undirected


@given(graphs())
def test_neighbours_are_those_of_networkx(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    for node in graph:
        own = adjacency.nodes[adjacency.starts[node] : adjacency.starts[node + 1]]
        assert own.tolist() == sorted(graph.neighbors(node))
    assert adjacency.degrees.tolist() == [degree for _, degree in graph.degree]
    assert adjacency.num_edges == graph.number_of_edges()
    assert {tuple(edge) for edge in adjacency.edges.T.tolist()} == set(graph.edges)
    pairs = all_pairs(len(graph))
    has = [graph.has_edge(*pair) for pair in pairs.T.tolist()]
    assert adjacency.has(pairs).tolist() == has
    places = adjacency.places(pairs)
    assert torch.equal(places >= 0, torch.tensor(has))
    assert torch.equal(adjacency.edge_index[:, places[has]], pairs[:, has])


@given(graphs(least=4))
def test_edges_come_and_go(graph: nx.Graph) -> None:
    pairs = torch.tensor([[0, 3, 1], [2, 0, 3]])
    smaller, larger = graph.copy(), graph.copy()
    smaller.remove_edges_from(pairs.T.tolist())
    larger.add_edges_from(pairs.T.tolist())
    adjacency = adjacency_of(graph)
    for changed, wanted in ((adjacency.without(pairs), smaller), (adjacency.joined(pairs), larger)):
        assert torch.equal(changed.edge_index, adjacency_of(wanted).edge_index)
        assert changed.num_nodes == len(graph)


def test_what_is_not_simple_is_made_so() -> None:
    given_edges = torch.tensor([[3, 0, 0, 1, 2], [0, 1, 1, 0, 2]])
    assert undirected(given_edges, 5).tolist() == [[0, 0, 1, 3], [1, 3, 0, 0]]
    assert undirected(torch.empty(2, 0, dtype=torch.int64), 0).shape == (2, 0)


def test_a_graph_is_what_carries_edges() -> None:
    edges = from_networkx(nx.path_graph(3))
    carried = Adjacency.of(SimpleNamespace(edge_index=edges, num_nodes=5))
    assert carried.num_nodes == 5 and carried.degrees.tolist() == [1, 2, 1, 0, 0]
    assert Adjacency.of(edges).num_nodes == 3
    assert Adjacency.of(carried) is carried and carried.to("cpu") is carried
    assert carried.to("meta").nodes.device.type == "meta"


@pytest.mark.parametrize(
    ("edges", "told"),
    [
        ([[0, 1, 2, 2], [1, 0, 2, 2]], "2 self-loops, the first at node 2"),
        ([[0, 1, 0], [1, 0, 1]], "1 duplicate edges, the first 0 → 1"),
        ([[0, 1, 1], [1, 0, 2]], "1 edges of one direction, the first 1 → 2 without 2 → 1"),
        ([[0, 1], [1, 7]], r"names node 7; ids are 0 … 3"),
        ([[0, -1], [1, 0]], "names node -1"),
        ([[0, 1, 2]], r"\(1, 3\) of torch.int64; \(2, E\)"),
        ([[0.0, 1.0], [1.0, 0.0]], "torch.float32"),
    ],
)
def test_what_is_not_a_simple_graph_is_told(edges: list, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Adjacency.of(torch.tensor(edges), 4)


def test_other_things_are_no_graphs() -> None:
    with pytest.raises(InputError, match="list has none"):
        Adjacency.of([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([[0, 2], [1, 2]], r"pair 1 is \(2, 2\): a node with itself"),
        ([[0, 1], [1, 3]], r"pair 1 is \(1, 3\): ids are 0 … 2"),
        ([[0], [1], [2]], r"pairs \(3, 1\)"),
    ],
)
def test_wrong_pairs_are_told(pairs: list, told: str) -> None:
    with pytest.raises(InputError, match=told):
        adjacency_of(nx.path_graph(3)).has(torch.tensor(pairs))
