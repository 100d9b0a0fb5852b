from collections import Counter

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphs_at_random import adjacency_of, all_pairs, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency
from polypath.graphs.concentration import (
    MUCH_LONGER,
    approximate_topological_concentration,
    ego_density,
    intersections,
    strata,
    topological_concentration,
)

KARATE = nx.karate_club_graph()
DIAMOND = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)])
PAW = nx.Graph([(0, 1), (1, 2), (2, 0), (0, 3)])
SMALL = {  # graph, concentration at depth 1 and at depth 2
    "complete": (nx.complete_graph(4), [1] * 4, [0.9048] * 4),
    "square": (nx.cycle_graph(4), [0] * 4, [0.6] * 4),
    "diamond": (DIAMOND, [2 / 3, 1, 2 / 3, 1], [0.794, 0.9225, 0.794, 0.9225]),
    "paw": (PAW, [1 / 3, 1, 1, 0], [0.6897, 0.8478, 0.8478, 0]),
    "claw": (nx.star_graph(3), [0] * 4, [0.5455, 0, 0, 0]),
    "bull": (nx.bull_graph(), [1, 1 / 3, 1 / 3, 0, 0], [0.8077, 0.6562, 0.6562, 0, 0]),
}


def walks(graph: nx.Graph, node: int, length: int) -> Counter:
    """The ends of all walks of a length from a node, one after the other."""
    ends = [node]
    for _ in range(length):
        ends = [other for end in ends for other in graph[end]]
    return Counter(ends)


def intersection(graph: nx.Graph, i: int, j: int, depth: int) -> float:
    """I(i, j) as the specification writes it, from lists of walks."""
    decay = len(graph) / max(2 * graph.number_of_edges(), 1)
    above = below = 0.0
    for a in range(1, depth + 1):
        for b in range(1, depth + 1):
            own, others = walks(graph, i, a), walks(graph, j, b)
            size = sum(own.values()) - (a == b == 1 and graph.has_edge(i, j))
            above += decay ** (a + b - 2) * sum(own[w] for w in own.keys() & others.keys())
            below += decay ** (a + b - 2) * size
    return above / below if below else 0.0


def concentration(graph: nx.Graph, depth: int, held: nx.Graph | None = None) -> list[float]:
    averaged, least = (graph, 2) if held is None else (held, 1)
    return [
        float(np.mean([intersection(graph, i, j, depth) for j in averaged[i]]))
        if graph.degree(i) >= least and averaged.degree(i)
        else 0.0
        for i in range(len(graph))
    ]


def split(graph: nx.Graph, share: float = 0.3) -> tuple[nx.Graph, nx.Graph, Tensor]:
    """A graph without some of its edges, the graph of these, and these."""
    edges = sorted(graph.edges)
    chosen = torch.randperm(len(edges))[: int(share * len(edges))].tolist()
    kept, held = graph.copy(), nx.create_empty_copy(graph)
    held.add_edges_from(edges[place] for place in chosen)
    kept.remove_edges_from(held.edges)
    return kept, held, torch.tensor(list(held.edges), dtype=torch.int64).reshape(-1, 2).T


@pytest.mark.parametrize("name", SMALL)
def test_the_specifications_small_graphs(name: str) -> None:
    graph, *wanted = SMALL[name]
    order = [list(graph).index(node) for node in range(len(graph))]
    for depth, values in enumerate(wanted, 1):
        found = topological_concentration(adjacency_of(graph), depth)[order]
        assert found.tolist() == pytest.approx(values, abs=5e-5)


def test_the_specifications_karate_club() -> None:
    graph = adjacency_of(KARATE)
    assert float(topological_concentration(graph).mean()) == pytest.approx(0.5706, abs=5e-5)
    deep = topological_concentration(graph, 2)
    assert float(deep.mean()) == pytest.approx(0.6260, abs=5e-5)
    assert deep[:4].tolist() == pytest.approx([0.3896, 0.5106, 0.4410, 0.6372], abs=5e-5)


def test_the_specifications_held_out_edge() -> None:
    graph, held = adjacency_of(nx.cycle_graph(5)).joined(torch.tensor([[0], [2]])), [[1], [3]]
    for depth, wanted in ((1, [0, 0.5, 0, 0.5, 0]), (2, [0, 0.4619, 0, 0.6110, 0])):
        found = topological_concentration(graph, depth, torch.tensor(held))
        assert found.tolist() == pytest.approx(wanted, abs=5e-5)


@given(graphs(most=30))
def test_at_depth_one_it_is_the_clustering_coefficient(graph: nx.Graph) -> None:
    found = topological_concentration(adjacency_of(graph))
    assert found.tolist() == pytest.approx(list(nx.clustering(graph).values()), abs=1e-12)


@given(graphs(least=2, most=7), st.integers(1, 4))
def test_intersections_are_those_of_walks(graph: nx.Graph, depth: int) -> None:
    pairs = all_pairs(len(graph))
    pairs = pairs[:, torch.randint(pairs.shape[1], (12,))]  # in any order, some twice
    found = intersections(adjacency_of(graph), pairs, depth)
    wanted = [intersection(graph, i, j, depth) for i, j in pairs.T.tolist()]
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)
    assert found.min() >= 0 and found.max() <= 1 + 1e-12


@given(graphs(least=2, most=9), st.integers(1, 3))
def test_concentration_is_that_of_walks(graph: nx.Graph, depth: int) -> None:
    kept, held, edges = split(graph)
    train = topological_concentration(adjacency_of(kept), depth)
    assert train.tolist() == pytest.approx(concentration(kept, depth), abs=1e-12)
    test = topological_concentration(adjacency_of(kept), depth, edges)
    assert test.tolist() == pytest.approx(concentration(kept, depth, held), abs=1e-12)


def test_it_is_asymmetric() -> None:
    pair = torch.tensor([[0, 3], [3, 0]])  # the paw's centre and its leaf
    one, other = intersections(adjacency_of(PAW), pair, 2).tolist()
    assert one > other + 0.1 or other > one + 0.1


@given(graphs(least=2), st.integers(1, 3))
def test_names_of_nodes_do_not_matter(graph: nx.Graph, depth: int) -> None:
    order = torch.randperm(len(graph))
    other = nx.relabel_nodes(graph, dict(enumerate(order.tolist())))
    renamed = nx.create_empty_copy(graph)
    renamed.add_edges_from(other.edges)
    found = topological_concentration(adjacency_of(renamed), depth)[order]
    torch.testing.assert_close(found, topological_concentration(adjacency_of(graph), depth))


def test_held_out_edges_change_nothing_but_who_is_averaged() -> None:
    graph = adjacency_of(KARATE)
    apart = all_pairs(34)[:, ~graph.has(all_pairs(34))]
    apart = apart[:, apart[0] < apart[1]]
    chosen = apart[:, torch.randperm(apart.shape[1])[:60]]
    both = topological_concentration(graph, 2, chosen)
    met = intersections(graph, torch.cat([chosen, chosen.flip(0)], 1), 2)
    ends = torch.cat([chosen[0], chosen[1]])
    for node in ends.unique().tolist():
        assert float(both[node]) == pytest.approx(float(met[ends == node].mean()))
    mixed = chosen[:, torch.randperm(60)]
    mixed = torch.where(torch.rand(60) < 0.5, mixed, mixed.flip(0))
    torch.testing.assert_close(topological_concentration(graph, 2, mixed), both)


def test_a_hub_is_searched() -> None:
    graph = nx.star_graph(5 * MUCH_LONGER)  # 0 and all others
    graph.add_edges_from([(1, node) for node in (3, 7, 50)])
    found = topological_concentration(adjacency_of(graph))
    assert found.tolist() == pytest.approx([nx.clustering(graph, node) for node in graph])
    pair = torch.tensor([[0, 1, 2], [1, 0, 4]])
    size = 5 * MUCH_LONGER - 1
    met = intersections(adjacency_of(graph), pair).tolist()
    assert met == pytest.approx([3 / size, 1, 1])


def test_hubs_and_threads_change_nothing() -> None:
    graph = nx.barabasi_albert_graph(300, 3, seed=0)
    dense = nx.to_numpy_array(graph, nodelist=range(300))
    decay = 300 / dense.sum()
    powers = [dense, dense @ dense, dense @ dense @ dense]
    above = sum(decay**k * power for k, power in enumerate(powers))
    above = above @ sum(decay**k * (power > 0) for k, power in enumerate(powers)).T
    sizes = sum(decay**k * power.sum(1) for k, power in enumerate(powers))
    below = sizes[:, None] * (1 + decay + decay**2) - dense
    pairs = all_pairs(300)
    found = [intersections(adjacency_of(graph), pairs, 3)]
    torch.set_num_threads(2)
    try:
        found.append(intersections(adjacency_of(graph), pairs, 3))
    finally:
        torch.set_num_threads(1)
    np.testing.assert_allclose(found[0], (above / below)[tuple(pairs)], atol=1e-12)
    assert torch.equal(*found)


def limit(graph: Adjacency, depth: int) -> np.ndarray:
    """(N, N): cosines of the rows of the mean of powers of the steps with self-loops."""
    dense = np.eye(graph.num_nodes)
    dense[tuple(graph.edge_index.numpy())] = 1
    steps = dense / dense.sum(1, keepdims=True)
    rows = sum(np.linalg.matrix_power(steps, k) for k in range(1, depth + 1))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_random_codes_tend_to_the_cosines_of_walks() -> None:
    graph = adjacency_of(KARATE)
    edges = graph.edges
    kept, held = graph.without(edges[:, ::5]), edges[:, ::5]
    for own, neighbours, averaged in (
        (graph, None, graph),
        (kept, held, graph.without(edges[:, torch.arange(edges.shape[1]) % 5 > 0])),
    ):
        cosines = torch.from_numpy(limit(own, 2))
        sums = torch.zeros(34, dtype=torch.float64)
        sums.index_add_(0, averaged.sources, cosines[tuple(averaged.edge_index)])
        wanted = sums / averaged.degrees.clamp_min(1)

        def found(dim: int, seed: int, own=own, neighbours=neighbours) -> Tensor:
            drawn = torch.Generator().manual_seed(seed)
            return approximate_topological_concentration(own, drawn, 2, neighbours, dim)

        torch.testing.assert_close(found(100_000, 0), wanted, atol=0.02, rtol=0)
        if neighbours is None:
            for dim, least in ((1024, 0.97), (64, 0.6)):
                both = torch.stack([found(dim, 1), wanted])
                assert float(torch.corrcoef(both)[0, 1]) > least
        assert torch.equal(found(64, 3), found(64, 3))
        assert not torch.equal(found(64, 3), found(64, 4))
        assert (found(64, 3)[averaged.degrees == 0] == 0).all()


@given(graphs(), st.integers(1, 3))
def test_ego_densities_are_those_of_networkx(graph: nx.Graph, hops: int) -> None:
    wanted = [nx.density(nx.ego_graph(graph, node, hops)) for node in graph]
    assert ego_density(adjacency_of(graph), hops).tolist() == pytest.approx(wanted)


@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=40), st.integers(1, 6))
def test_strata_are_ordered_and_even(values: list[float], parts: int) -> None:
    scores = torch.tensor(values)
    found = strata(scores, parts)
    assert found.min() >= 0 and found.max() < parts
    order = scores.argsort()
    assert (found[order].diff() >= 0).all()
    for value in scores.unique():
        assert len(found[scores == value].unique()) == 1
    own = strata(torch.randperm(100).double(), 5)
    assert own.bincount(minlength=5).tolist() == [20] * 5


def test_empty_graphs_have_none() -> None:
    graph, none = adjacency_of(nx.empty_graph(3)), torch.empty(2, 0, dtype=torch.int64)
    for depth in (1, 2):
        assert topological_concentration(graph, depth).tolist() == [0, 0, 0]
        assert topological_concentration(graph, depth, torch.tensor([[0], [1]])).sum() == 0
        assert intersections(graph, none, depth).shape == (0,)
        assert topological_concentration(adjacency_of(PAW), depth, none).tolist() == [0] * 4
    assert ego_density(graph).tolist() == [0, 0, 0]


def test_wrong_input_is_told() -> None:
    graph, edge = adjacency_of(PAW), torch.tensor([[0], [1]])
    with pytest.raises(InputError, match="depth=0"):
        topological_concentration(graph, 0)
    for call in (
        lambda: topological_concentration(graph, 1, edge),
        lambda: approximate_topological_concentration(graph, torch.Generator(), 1, edge),
    ):
        with pytest.raises(InputError, match=r"1 held-out edges are in the graph, .* \(0, 1\)"):
            call()
    with pytest.raises(InputError, match="duplicate"):
        topological_concentration(graph, 1, torch.tensor([[1, 3], [3, 1]]))
    with pytest.raises(InputError, match="a node with itself"):
        intersections(graph, torch.tensor([[1], [1]]))
    with pytest.raises(InputError, match="depth=1, dim=0"):
        approximate_topological_concentration(graph, torch.Generator(), 1, dim=0)
    with pytest.raises(InputError, match="hops=0"):
        ego_density(graph, 0)
    with pytest.raises(InputError, match="strata: 0 parts"):
        strata(torch.ones(3), 0)
    with pytest.raises(InputError, match="without NaN"):
        strata(torch.tensor([float("nan")]))
