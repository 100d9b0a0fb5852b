import networkx as nx
import numpy as np
from hypothesis import given

from graphlet_references import dense_forms
from graphs_at_random import adjacency_of, graphs
from polypath.graphs.graphlets.edges import count_edges
from polypath.graphs.graphlets.formulas import Apart, Neighbours, evaluate
from polypath.graphs.graphlets.orbits import ORBIT_PAIRS, transposed


@given(graphs())
def test_forms_on_edges_are_the_specifications_products(graph: nx.Graph) -> None:
    counts = count_edges(adjacency_of(graph))
    wanted = dense_forms(nx.to_numpy_array(graph, dtype=np.int64))
    for once in (False, True):
        seen = Neighbours.of(counts, once)
        at = seen.rows, seen.columns
        assert len(seen.rows) == graph.size() * (1 if once else 2)
        for pair in ORBIT_PAIRS:
            if pair[0] == 1:
                matrix = wanted[pair] if pair in wanted else wanted[transposed(pair)].T
                np.testing.assert_array_equal(evaluate(pair, seen), matrix[at])


@given(graphs())
def test_forms_apart_are_the_specifications_products(graph: nx.Graph) -> None:
    a = nx.to_numpy_array(graph, dtype=np.int64)
    wanted = dense_forms(a)
    at = np.nonzero(wanted[2, 1, 1])
    t = a * (a @ a)
    sums = {
        "left": t @ a,
        "right": a @ t,
        "shared": a @ a,
        "degrees": a @ np.diag(a.sum(1)) @ a,
        "joined": wanted[2, 12, 12],
    }
    seen = Apart(*at, **{name: sums[name][at] for name in sums}, degree=a.sum(1))
    for pair in ORBIT_PAIRS:
        if pair[0] == 2:
            matrix = wanted[pair] if pair in wanted else wanted[transposed(pair)].T
            np.testing.assert_array_equal(evaluate(pair, seen), matrix[at])
