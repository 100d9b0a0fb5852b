import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphlet_references import by_subsets, dense_forms, star
from graphs_at_random import adjacency_of, all_pairs, from_networkx, graphs
from polypath.errors import InputError
from polypath.graphs.graphlets import (
    ORBIT_PAIRS,
    WALK_VISIBLE,
    OrbitPair,
    graphlet_adjacencies,
    matrices,
    orbit_adjacencies,
    orbit_adjacency_blocks,
    pair_orbits,
)
from polypath.graphs.graphlets.orbits import transposed

HOUSE = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (4, 0), (4, 1)])
PAW = nx.Graph([(0, 1), (1, 2), (2, 0), (0, 3)])
DIAMOND = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)])
BULL = nx.Graph([(0, 1), (1, 2), (2, 0), (0, 3), (1, 4)])
KARATE = nx.karate_club_graph()

# Sums of all entries by hop, o1 and o2 as one number; those with o1 > o2 equal their transposes.
TOTALS: dict[str, tuple[nx.Graph, dict[OrbitPair, int]]] = {
    "K4": (nx.complete_graph(4), {(1, 0, 0): 12, (1, 3, 3): 24, (1, 14, 14): 12}),
    "C4": (
        nx.cycle_graph(4),
        {(1, 0, 0): 8, (1, 1, 2): 8, (2, 1, 1): 8, (1, 8, 8): 8, (2, 8, 8): 4},
    ),
    "paw": (
        PAW,
        {
            **{(1, 0, 0): 8, (1, 1, 2): 4, (2, 1, 1): 4, (1, 3, 3): 6, (1, 9, 11): 1},
            **{(2, 9, 10): 2, (1, 10, 10): 2, (1, 10, 11): 2},
        },
    ),
    "diamond": (
        DIAMOND,
        {
            **{(1, 0, 0): 10, (1, 1, 2): 4, (2, 1, 1): 4, (1, 3, 3): 12},
            **{(1, 12, 13): 4, (2, 12, 12): 2, (1, 13, 13): 2},
        },
    ),
    "claw": (
        nx.star_graph(3),
        {(1, 0, 0): 6, (1, 1, 2): 6, (2, 1, 1): 6, (1, 6, 7): 3, (2, 6, 6): 6},
    ),
    "P4": (
        nx.path_graph(4),
        {
            **{(1, 0, 0): 6, (1, 1, 2): 4, (2, 1, 1): 4, (1, 4, 5): 2, (2, 4, 5): 2},
            **{(1, 5, 5): 2, (3, 4, 4): 2},
        },
    ),
    "C5": (
        nx.cycle_graph(5),
        {
            **{(1, 0, 0): 10, (1, 1, 2): 10, (2, 1, 1): 10, (1, 4, 5): 10, (2, 4, 5): 10},
            **{(1, 5, 5): 10, (3, 4, 4): 10},
        },
    ),
    "K5": (nx.complete_graph(5), {(1, 0, 0): 20, (1, 3, 3): 60, (1, 14, 14): 60}),
    "house": (
        HOUSE,
        {
            **{(1, 0, 0): 12, (1, 1, 2): 12, (2, 1, 1): 12, (1, 3, 3): 6, (1, 4, 5): 4},
            **{(2, 4, 5): 4, (1, 5, 5): 4, (3, 4, 4): 4, (1, 8, 8): 8, (2, 8, 8): 4},
            **{(1, 9, 11): 2, (2, 9, 10): 4, (1, 10, 10): 4, (1, 10, 11): 4},
        },
    ),
    "bull": (
        BULL,
        {
            **{(1, 0, 0): 10, (1, 1, 2): 8, (2, 1, 1): 8, (1, 3, 3): 6, (1, 4, 5): 2},
            **{(2, 4, 5): 2, (1, 5, 5): 2, (3, 4, 4): 2, (1, 9, 11): 2, (2, 9, 10): 4},
            **{(1, 10, 10): 4, (1, 10, 11): 4},
        },
    ),
    "K3,3": (
        nx.complete_bipartite_graph(3, 3),
        {
            **{(1, 0, 0): 18, (1, 1, 2): 36, (2, 1, 1): 36, (1, 6, 7): 18, (2, 6, 6): 36},
            **{(1, 8, 8): 72, (2, 8, 8): 36},
        },
    ),
    "Petersen": (
        nx.petersen_graph(),
        {
            **{(1, 0, 0): 30, (1, 1, 2): 60, (2, 1, 1): 60, (1, 4, 5): 120, (2, 4, 5): 120},
            **{(1, 5, 5): 120, (3, 4, 4): 120, (1, 6, 7): 30, (2, 6, 6): 60},
        },
    ),
    "karate": (
        KARATE,
        {
            **{(1, 0, 0): 156, (1, 1, 2): 786, (2, 1, 1): 786, (1, 3, 3): 270, (1, 4, 5): 1362},
            **{(2, 4, 5): 1362, (1, 5, 5): 1362, (3, 4, 4): 1362, (1, 6, 7): 3294},
            **{(2, 6, 6): 6588, (1, 8, 8): 288, (2, 8, 8): 144, (1, 9, 11): 452},
            **{(2, 9, 10): 904, (1, 10, 10): 904, (1, 10, 11): 904, (1, 12, 13): 340},
            **{(2, 12, 12): 170, (1, 13, 13): 170, (1, 14, 14): 132},
        },
    ),
}


def dense(graph: nx.Graph, **options: object) -> dict[OrbitPair, np.ndarray]:
    found = orbit_adjacencies(adjacency_of(graph), **options)
    return {pair: matrix.toarray() for pair, matrix in found.items()}


@pytest.mark.parametrize("name", TOTALS)
def test_the_specifications_totals(name: str) -> None:
    graph, wanted = TOTALS[name]
    found = orbit_adjacencies(adjacency_of(graph))
    assert tuple(found) == ORBIT_PAIRS
    for pair, matrix in found.items():
        assert matrix.sum() == wanted.get(pair, wanted.get(transposed(pair), 0)), pair


# Entries other than 0 of matrices of four-node graphlets, and of three where they tell something.
ENTRIES: list[tuple[nx.Graph, OrbitPair, dict[tuple[int, int], int]]] = [
    (PAW, (1, 9, 11), {(3, 0): 1}),
    (PAW, (2, 9, 10), {(3, 1): 1, (3, 2): 1}),
    (PAW, (1, 10, 10), {(1, 2): 1, (2, 1): 1}),
    (PAW, (1, 10, 11), {(1, 0): 1, (2, 0): 1}),
    (PAW, (1, 1, 2), {(1, 0): 1, (2, 0): 1, (3, 0): 2}),
    (PAW, (2, 1, 1), {(1, 3): 1, (2, 3): 1, (3, 1): 1, (3, 2): 1}),
    (DIAMOND, (1, 12, 13), {(1, 0): 1, (1, 2): 1, (3, 0): 1, (3, 2): 1}),
    (DIAMOND, (2, 12, 12), {(1, 3): 1, (3, 1): 1}),
    (DIAMOND, (1, 13, 13), {(0, 2): 1, (2, 0): 1}),
    (DIAMOND, (2, 1, 1), {(1, 3): 2, (3, 1): 2}),
    (nx.star_graph(3), (1, 6, 7), {(1, 0): 1, (2, 0): 1, (3, 0): 1}),
    (nx.path_graph(4), (1, 4, 5), {(0, 1): 1, (3, 2): 1}),
    (nx.path_graph(4), (2, 4, 5), {(0, 2): 1, (3, 1): 1}),
    (nx.path_graph(4), (1, 5, 5), {(1, 2): 1, (2, 1): 1}),
    (nx.path_graph(4), (3, 4, 4), {(0, 3): 1, (3, 0): 1}),
    (nx.cycle_graph(4), (2, 8, 8), {(0, 2): 1, (2, 0): 1, (1, 3): 1, (3, 1): 1}),
]


@pytest.mark.parametrize(("graph", "pair", "wanted"), ENTRIES)
def test_the_specifications_entries(
    graph: nx.Graph, pair: OrbitPair, wanted: dict[tuple[int, int], int]
) -> None:
    for own, entries in (
        (pair, wanted),
        (transposed(pair), {(j, i): v for (i, j), v in wanted.items()}),
    ):
        found = orbit_adjacencies(adjacency_of(graph), only=[own])[own].tocoo()
        places = zip(*(axis.tolist() for axis in found.coords), strict=True)
        assert dict(zip(places, found.data.tolist(), strict=True)) == entries


@settings(max_examples=120)
@given(graphs(most=8))
def test_matrices_are_those_of_all_subsets(graph: nx.Graph) -> None:
    wanted, together, _ = by_subsets(graph)
    found = orbit_adjacencies(adjacency_of(graph))
    for pair, matrix in found.items():
        np.testing.assert_array_equal(matrix.toarray(), wanted[pair])
        assert isinstance(matrix, sparse.csr_array) and matrix.dtype == np.int64
        assert matrix.has_canonical_format and (matrix.data > 0).all()
    for matrix, counts in zip(graphlet_adjacencies(adjacency_of(graph)), together, strict=True):
        np.testing.assert_array_equal(matrix.toarray(), counts)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.9])
def test_larger_graphs_are_dense_products(density: float) -> None:
    graph = nx.gnp_random_graph(150, density, seed=3)
    found = dense(graph)
    for pair, wanted in dense_forms(nx.to_numpy_array(graph, dtype=np.int64)).items():
        np.testing.assert_array_equal(found[pair], wanted)
        np.testing.assert_array_equal(found[transposed(pair)], wanted.T)


@given(graphs(most=30))
def test_walks_are_mixtures_of_what_they_see(graph: nx.Graph) -> None:
    m, a = dense(graph), nx.to_numpy_array(graph, dtype=np.int64)
    off = 1 - np.eye(len(graph), dtype=np.int64)
    np.testing.assert_array_equal(off * (a @ a), m[2, 1, 1] + m[1, 3, 3])
    twice = {(1, 3, 3), (2, 12, 12), (1, 14, 14)}
    mixed = sum((1 + (p in twice)) * m[p] for p in WALK_VISIBLE - {(2, 1, 1)})
    np.testing.assert_array_equal(off * (a @ a @ a), mixed)


@given(graphs(most=30))
def test_graphlets_have_their_pairs(graph: nx.Graph) -> None:
    m = dense(graph)
    total = {pair: int(matrix.sum()) for pair, matrix in m.items()}
    assert len({total[pair] for pair in ((1, 4, 5), (2, 4, 5), (1, 5, 5), (3, 4, 4))}) == 1
    assert total[2, 6, 6] == 2 * total[1, 6, 7]
    assert total[1, 8, 8] == 2 * total[2, 8, 8]
    assert total[2, 9, 10] == total[1, 10, 10] == total[1, 10, 11] == 2 * total[1, 9, 11]
    assert total[1, 12, 13] == 2 * total[2, 12, 12] == 2 * total[1, 13, 13]
    a = nx.to_numpy_array(graph, dtype=np.int64)
    for pair, matrix in m.items():
        assert not matrix.diagonal().any() and not (matrix * (a if pair[0] > 1 else 1 - a)).any()
        np.testing.assert_array_equal(matrix, m[transposed(pair)].T)


@given(graphs(most=12), graphs(most=8), st.randoms())
def test_names_and_other_components_do_not_matter(
    graph: nx.Graph, other: nx.Graph, random: object
) -> None:
    order = list(graph)
    random.shuffle(order)
    moved = nx.Graph()
    moved.add_nodes_from(graph)
    moved.add_edges_from((order[i], order[j]) for i, j in graph.edges)
    m, n = dense(graph), dense(other)
    shuffled, both = dense(moved), dense(nx.disjoint_union(graph, other))
    lonely = nx.disjoint_union(graph, nx.empty_graph(2))
    for pair, matrix in dense(lonely).items():
        np.testing.assert_array_equal(shuffled[pair][np.ix_(order, order)], m[pair])
        np.testing.assert_array_equal(both[pair], sparse.block_diag([m[pair], n[pair]]).toarray())
        np.testing.assert_array_equal(matrix[:-2, :-2], m[pair])
        assert not matrix[-2:].any() and not matrix[:, -2:].any()


def test_an_edge_less_turns_a_clique_into_a_diamond() -> None:
    clique = nx.complete_graph(4)
    assert dense(clique)[1, 14, 14].sum() == 12
    clique.remove_edge(1, 3)
    m = dense(clique)
    for pair, wanted in dense(DIAMOND).items():
        np.testing.assert_array_equal(m[pair], wanted)
    assert not m[1, 14, 14].any()
    assert m[1, 12, 13].sum() == 4 and m[2, 12, 12].sum() == m[1, 13, 13].sum() == 2


def test_counts_beyond_single_precision_are_exact() -> None:
    sides = 7002  # neighbours that two nodes share
    graph = adjacency_of(nx.complete_bipartite_graph(2, sides))
    found = pair_orbits(graph, torch.tensor([[0], [1]]), [(2, 8, 8), (2, 1, 1)]).tolist()
    assert found == [[sides * (sides - 1) // 2, sides]] and found[0][0] > 2**24
    odd = orbit_adjacencies(star(9004), only=[(1, 6, 7)])[1, 6, 7].max()
    assert odd == 9003 * 9002 // 2 > 2**24 and odd % 2 == 1  # no float32 is that


@given(graphs(most=15), st.data())
def test_parts_are_parts_of_the_whole(graph: nx.Graph, data: st.DataObject) -> None:
    adjacency, whole = adjacency_of(graph), dense(graph)
    only = data.draw(st.lists(st.sampled_from(ORBIT_PAIRS), unique=True))
    first = data.draw(st.integers(0, len(graph)))
    rows = range(first, data.draw(st.integers(first, len(graph))))
    found = orbit_adjacencies(adjacency, only=only, rows=rows)
    assert list(found) == only
    for pair, matrix in found.items():
        np.testing.assert_array_equal(matrix.toarray(), whole[pair][first : rows.stop])
    seen = []
    for own, block in orbit_adjacency_blocks(adjacency, only=only, rows=rows, memory_mb=0.003):
        seen += own
        assert list(block) == only
        for pair, matrix in block.items():
            np.testing.assert_array_equal(matrix.toarray(), whole[pair][own.start : own.stop])
    assert seen == list(rows)


@given(graphs(least=2, most=15), st.data())
def test_entries_are_those_of_the_matrices(graph: nx.Graph, data: st.DataObject) -> None:
    every = all_pairs(len(graph)).T.tolist()
    pairs = data.draw(st.lists(st.sampled_from(every), max_size=20))
    only = data.draw(st.none() | st.lists(st.sampled_from(ORBIT_PAIRS), unique=True))
    given_pairs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    found = pair_orbits(adjacency_of(graph), given_pairs, only, memory_mb=0.003)
    whole = dense(graph)
    asked = ORBIT_PAIRS if only is None else only
    assert found.shape == (len(pairs), len(asked))
    assert found.tolist() == [[whole[own][i, j] for own in asked] for i, j in pairs]


def rows_of(edges: torch.Tensor, rows: range) -> dict[OrbitPair, sparse.csr_array]:
    return orbit_adjacencies(edges, rows=rows, workers=1)


@pytest.mark.slow
def test_processes_that_share_the_rows_give_the_whole() -> None:
    edges = from_networkx(KARATE)
    shares = [range(0, 12), range(12, 34)]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        parts = list(pool.map(rows_of, [edges] * 2, shares))
    for pair, matrix in orbit_adjacencies(edges).items():
        stacked = sparse.vstack([part[pair] for part in parts])
        assert (stacked != matrix).nnz == 0 and stacked.sum() == matrix.sum()


@pytest.mark.parametrize("workers", [2, 3])
def test_threads_change_nothing(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "BLOCK_MB", 0.05)
    wanted = orbit_adjacencies(adjacency_of(KARATE), workers=1)
    for pair, matrix in orbit_adjacencies(adjacency_of(KARATE), workers=workers).items():
        assert (matrix != wanted[pair]).nnz == 0


def test_a_graph_is_what_carries_edges() -> None:
    carried = SimpleNamespace(edge_index=from_networkx(PAW), num_nodes=6)
    found = orbit_adjacencies(carried)
    assert all(matrix.shape == (6, 6) for matrix in found.values())
    assert found[1, 9, 11].sum() == 1
    empty = orbit_adjacencies(torch.empty(2, 0, dtype=torch.int64), 0)
    assert all(matrix.shape == (0, 0) for matrix in empty.values())


def test_what_would_not_fit_is_told_before_it_is_made() -> None:
    hub = star(100_000)
    start = time.monotonic()
    with pytest.raises(
        InputError,
        match=r"28 orbit adjacencies of 100001 nodes would take about 2\d\d\.\d GB, above 1\.0 GB"
        r".*memory_mb.*only=.*orbit_adjacency_blocks.*graphlet_degree_vectors",
    ):
        orbit_adjacencies(hub, memory_mb=1000)
    assert time.monotonic() - start < 30  # all pairs of leaves would take minutes
    centre = orbit_adjacencies(hub, only=[(1, 6, 7)], memory_mb=1000)[1, 6, 7]
    assert centre.nnz == 100_000 and centre.max() == 99_999 * 99_998 // 2
    first = orbit_adjacencies(hub, only=[(2, 6, 6)], rows=range(0, 3), memory_mb=1000)[2, 6, 6]
    assert first.nnz == 2 * 99_999 and first.max() == 99_998


def test_what_the_sample_missed_is_told_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "SAMPLED", 1)  # row 0 alone, which has no entry
    graph = nx.disjoint_union(nx.empty_graph(1), nx.star_graph(400))
    with pytest.raises(InputError, match=r"would take about \d+\.\d GB"):
        orbit_adjacencies(adjacency_of(graph), memory_mb=0.5)


def test_wrong_input_is_told() -> None:
    edges = from_networkx(PAW)
    for call in (orbit_adjacencies, graphlet_adjacencies):
        with pytest.raises(InputError, match="1 edges of one direction"):
            call(torch.tensor([[0], [1]]))
    with pytest.raises(InputError, match="no orbit adjacency"):
        orbit_adjacencies(edges, only=[(2, 3, 3)])
    for rows in (range(0, 5), range(-1, 2), range(0, 4, 2), range(3, 1)):
        with pytest.raises(InputError, match=r"a range within 0 … 4 in steps of 1"):
            orbit_adjacencies(edges, rows=rows)
        with pytest.raises(InputError, match=r"a range within 0 … 4 in steps of 1"):
            next(orbit_adjacency_blocks(edges, rows=rows))
    with pytest.raises(InputError, match=r"pair 0 is \(2, 2\)"):
        pair_orbits(edges, torch.tensor([[2], [2]]))
    with pytest.raises(InputError, match="workers=-1"):
        orbit_adjacencies(edges, workers=-1)
