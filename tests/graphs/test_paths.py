import networkx as nx
import pytest
from hypothesis import given

from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs.paths import paths_between


@given(graphs(least=2, most=9))
def test_paths_are_shortest_ones(graph: nx.Graph) -> None:
    found = paths_between(adjacency_of(graph), 0, len(graph) - 1, 1000)
    try:
        wanted = sorted(nx.all_shortest_paths(graph, 0, len(graph) - 1))
    except nx.NetworkXNoPath:
        wanted = []
    assert sorted(found) == wanted
    degrees = [sum(graph.degree[node] for node in path[1:-1]) for path in found]
    assert degrees == sorted(degrees)


def test_as_many_as_asked_for() -> None:
    bipartite = adjacency_of(nx.complete_bipartite_graph(2, 5))
    assert paths_between(bipartite, 0, 1, 2) == [[0, 2, 1], [0, 3, 1]]
    assert paths_between(bipartite, 0, 2, 0) == []
    with pytest.raises(InputError, match="count=-1"):
        paths_between(bipartite, 0, 1, -1)
