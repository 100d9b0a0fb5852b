import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given

from graphlet_references import star
from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency
from polypath.graphs.graphlets import edges
from polypath.graphs.graphlets.edges import count_edges, count_triangles


@given(graphs())
def test_counts_are_those_of_sets_and_of_cycles_of_networkx(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    found = count_edges(adjacency)
    squares = [cycle for cycle in nx.simple_cycles(graph, 4) if len(cycle) == 4]
    cliques = [clique for clique in nx.enumerate_all_cliques(graph) if len(clique) == 4]
    triangles = {edge: set(graph[edge[0]]) & set(graph[edge[1]]) for edge in graph.edges}

    def on(i: int, j: int) -> int:
        return len(set(graph[i]) & set(graph[j]))

    for place, (i, j) in enumerate(adjacency.edges.T.tolist()):
        third = triangles[i, j]
        rounds = [list(zip(cycle, cycle[1:] + cycle[:1], strict=True)) for cycle in squares]
        assert found.triangles[place] == len(third)
        assert found.cliques[place] == sum({i, j} <= set(clique) for clique in cliques)
        assert found.squares[place] == sum((i, j) in own or (j, i) in own for own in rounds)
        assert found.degrees[place] == sum(graph.degree[k] for k in third)
        assert found.left[place] == sum(on(i, k) for k in third)
        assert found.right[place] == sum(on(j, k) for k in third)
    assert count_triangles(adjacency).tolist() == found.triangles[found.ids].tolist()
    ends = adjacency.edges[:, torch.from_numpy(found.ids)]
    assert torch.equal(ends.sort(0).values, adjacency.edge_index.sort(0).values)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_add_up(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = adjacency_of(nx.gnp_random_graph(60, 0.4, seed=1))
    wanted = count_edges(graph)
    monkeypatch.setattr(edges, "SHARE", 1)
    found = count_edges(graph, workers)
    for name in ("triangles", "cliques", "squares", "degrees", "left", "right"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_a_hub_costs_its_edges() -> None:
    found = count_edges(star(100_000))  # all pairs of leaves would be 10^10 steps
    assert not found.triangles.any() and not found.squares.any()


def test_wrong_input_is_told() -> None:
    graph = adjacency_of(nx.path_graph(3))
    with pytest.raises(InputError, match="workers=0; at least 1"):
        count_edges(graph, workers=0)
    starts = torch.zeros(1, dtype=torch.int64).expand(2**31 + 1)
    with pytest.raises(InputError, match=r"2147483648 nodes; .* fewer than 2\^31"):
        count_edges(Adjacency(starts, torch.zeros(0, dtype=torch.int64)))
