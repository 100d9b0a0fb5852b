import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs_at_random import adjacency_of, graphs
from polypath.graphs.graphlets.edges import count_triangles
from polypath.graphs.graphlets.rows import Rows, walk_rows
from polypath.graphs.kernels import array


def walked(graph: nx.Graph, rows: list[int], joined: bool = True, third: bool = True) -> Rows:
    adjacency = adjacency_of(graph)
    given_arrays = array(adjacency.starts), array(adjacency.nodes), count_triangles(adjacency)
    return Rows(*walk_rows(*given_arrays, np.array(rows, np.int64), joined, third))


def check(graph: nx.Graph, rows: list[int], found: Rows) -> None:
    """Against sets of neighbours, and induced paths of networkx."""
    near, far = 0, 0
    for row, i in enumerate(rows):
        others = sorted(set(graph) - set(graph[i]) - {i})
        shared = {j: set(graph[i]) & set(graph[j]) for j in others}
        wanted = [j for j in others if shared[j]]
        own = slice(near, near + found.near[row])
        assert found.near_nodes[own].tolist() == wanted
        for j, counted in zip(wanted, found.counted[own].tolist(), strict=True):
            sums = [
                len(shared[j]),
                sum(graph.degree[k] for k in shared[j]),
                sum(len(set(graph[i]) & set(graph[k])) for k in shared[j]),
                sum(len(set(graph[j]) & set(graph[k])) for k in shared[j]),
                graph.subgraph(shared[j]).size(),
            ]
            assert counted == sums
        ends = {
            j: sum(
                graph.subgraph(path).size() == 3
                for path in nx.all_simple_paths(graph, i, j, 3)
                if len(path) == 4
            )
            for j in others
        }
        own = slice(far, far + found.far[row])
        assert dict(zip(found.far_nodes[own].tolist(), found.paths[own].tolist(), strict=True)) == {
            j: count for j, count in ends.items() if count
        }
        assert (np.diff(found.far_nodes[own]) > 0).all()
        near, far = near + found.near[row], far + found.far[row]
    assert (near, far) == (len(found.near_nodes), len(found.far_nodes))


@given(graphs(), st.data())
def test_rows_are_those_of_sets_and_paths(graph: nx.Graph, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sampled_from(sorted(graph)), max_size=6))  # in any order, or none
    check(graph, rows, walked(graph, rows))


@pytest.mark.parametrize("size", [63, 64, 65, 130])
def test_joined_neighbours_are_met_in_strips(size: int) -> None:
    graph = nx.gnp_random_graph(size, 0.3, seed=size)
    graph.add_edges_from((size, node) for node in range(size))  # a node with all as neighbours
    graph.add_edges_from((size + 1, node) for node in range(0, size, 2))
    found = walked(graph, [size], third=False)
    assert found.near_nodes.tolist() == [size + 1]
    assert found.counted[0, 4] == graph.subgraph(range(0, size, 2)).size()


def test_what_is_not_asked_for_is_not_counted() -> None:
    graph = nx.complete_multipartite_graph(2, 2, 2)
    found = walked(graph, [0], joined=False, third=False)
    assert found.counted.tolist() == [[4, 16, 8, 8, 0]] and not len(found.paths)
    assert walked(graph, [0]).counted[0, 4] == 4
