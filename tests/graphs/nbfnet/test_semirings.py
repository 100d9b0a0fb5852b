"""What NBFNet generalises: with fixed operators its recursion is Katz, PageRank, shortest paths."""

import math
from functools import partial

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polypath.graphs import Incoming, pass_messages
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig

EDGES = [(0, 1, 0.5), (0, 2, 0.8), (1, 2, 0.7), (1, 3, 0.9), (2, 3, 0.4)]
INFINITY = math.inf


def toy() -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(4))
    graph.add_weighted_edges_from(EDGES)
    return graph


def recursion(
    graph: nx.DiGraph,
    message: str,
    aggregate: str,
    zero: float,
    one: float,
    rounds: int,
    factor: float = 1.0,
) -> Tensor:
    """(N,): h(0, v) after some rounds; an edge is a type of its own, with its weight · factor."""
    listed = list(graph.edges(data="weight"))
    index = torch.tensor([edge[:2] for edge in listed], dtype=torch.int64).reshape(-1, 2).T
    values = torch.tensor([edge[2] for edge in listed], dtype=torch.float64)[:, None] * factor
    edges = Incoming.of(index, len(graph), torch.arange(len(listed)), max(len(listed), 1))
    values = values if len(listed) else torch.ones(1, 1, dtype=torch.float64)
    boundary = torch.full((len(graph), 1, 1), zero, dtype=torch.float64)
    boundary[0] = one
    h = boundary
    for _ in range(rounds):
        h = pass_messages(edges, h, values, boundary, message, aggregate)
    return h.flatten()


def walks(graph: nx.DiGraph, length: int) -> list[list[list[float]]]:
    """For each node, the weights along every walk of `length` edges at most from node 0 to it."""
    found: list[list[list[float]]] = [[] for _ in graph]
    level = [(0, [])]
    for _ in range(length + 1):
        for node, weights in level:
            found[node].append(weights)
        level = [
            (after, [*weights, graph[node][after]["weight"]])
            for node, weights in level
            for after in graph[node]
        ]
    return found


TABLE = [
    ("plus", "min", INFINITY, 0.0, [0, 0.5, 0.8, 1.2]),
    ("minimum", "max", -INFINITY, INFINITY, [INFINITY, 0.5, 0.8, 0.5]),
    ("times", "max", 0.0, 1.0, [1, 0.5, 0.8, 0.45]),
]


@pytest.mark.parametrize(("message", "aggregate", "zero", "one", "wanted"), TABLE)
def test_the_specifications_table(
    message: str, aggregate: str, zero: float, one: float, wanted: list[float]
) -> None:
    found = recursion(toy(), message, aggregate, zero, one, 3)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_katz_adds_the_next_walk_length_each_round() -> None:
    found = recursion(toy(), "times", "sum", 0, 1, 3, 0.1)
    torch.testing.assert_close(found, torch.tensor([1, 0.05, 0.0835, 0.00784]).double())
    assert float(recursion(toy(), "times", "sum", 0, 1, 2, 0.1)[3]) == pytest.approx(0.0077)
    plain = nx.DiGraph(toy().edges)
    nx.set_edge_attributes(plain, 1.0, "weight")
    assert recursion(plain, "times", "sum", 0, 1, 3).tolist() == [1, 1, 2, 3]


def test_pagerank_mass() -> None:
    graph = toy()
    for node in graph:
        total = sum(data["weight"] for data in graph[node].values())
        for after in graph[node]:
            graph[node][after]["weight"] /= total
    found = recursion(graph, "times", "sum", 0, 1, 3, 0.85)
    torch.testing.assert_close(
        found, torch.tensor([1, 0.326923, 0.644651, 0.704264]).double(), rtol=0, atol=5e-7
    )


@st.composite
def weighted(draw: st.DrawFn) -> nx.DiGraph:
    graph = nx.gnp_random_graph(
        draw(st.integers(1, 8)),
        draw(st.sampled_from([0.0, 0.2, 0.4])),
        draw(st.integers(0, 999)),
        directed=True,
    )
    for edge in graph.edges.values():
        edge["weight"] = draw(st.integers(1, 9)) / 10
    return graph


@given(weighted())
def test_shortest_paths_are_networkxs(graph: nx.DiGraph) -> None:
    found = recursion(graph, "plus", "min", INFINITY, 0, len(graph))
    wanted = nx.single_source_dijkstra_path_length(graph, 0)
    assert found.tolist() == pytest.approx([wanted.get(v, INFINITY) for v in graph])


@given(weighted())
def test_katz_and_pagerank_are_networkxs(graph: nx.DiGraph) -> None:
    found = recursion(graph, "times", "sum", 0, 1, 60, 0.05)
    matrix = torch.from_numpy(nx.to_numpy_array(graph))
    wanted = torch.linalg.inv(torch.eye(len(graph)).double() - 0.05 * matrix)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    steps = nx.stochastic_graph(graph)
    mass = recursion(steps, "times", "sum", 0, 1, 200, 0.5)
    if all(graph.out_degree(v) for v in graph):
        rank = nx.pagerank(graph, 0.5, personalization={0: 1.0}, tol=1e-12, weight="weight")
        assert (0.5 * mass).tolist() == pytest.approx([rank[v] for v in graph], abs=1e-8)


@given(weighted(), st.integers(0, 4))
def test_each_semiring_is_its_sum_over_walks(graph: nx.DiGraph, rounds: int) -> None:
    every = walks(graph, rounds)
    for message, aggregate, zero, one, _ in TABLE:
        product = {"plus": sum, "minimum": partial(min, default=INFINITY), "times": math.prod}
        total = {"min": min, "max": max}[aggregate]
        wanted = [total([zero, *map(product[message], own)]) for own in every]
        found = recursion(graph, message, aggregate, zero, one, rounds)
        assert found.tolist() == pytest.approx(wanted)


def test_the_learnt_module_reduces_to_katz() -> None:
    beta, dim, rounds = 0.1, 8, 3
    ends = {"layer_norm": False, "shortcut": False, "activation": False}
    model = NBFNet(NBFNetConfig(1, dim, rounds, aggregate="sum", dependent=False, **ends)).double()
    with torch.no_grad():
        model.query.weight.fill_(1)
        for layer in model.layers:
            layer.relation.weight.fill_(beta)
            layer.combine.bias.zero_()
            layer.combine.weight.copy_(torch.cat([torch.zeros(dim, dim), torch.eye(dim)], 1))
    graph = nx.DiGraph(toy().edges)
    nx.set_edge_attributes(graph, 1.0, "weight")
    index = torch.tensor(list(graph.edges)).T
    pairs = torch.stack([torch.zeros(4).long(), torch.arange(4)])
    found = model.features(Incoming.of(index, 4), torch.tensor([0]), torch.tensor([0]), pairs)
    wanted = recursion(graph, "times", "sum", 0, 1, rounds, beta)
    torch.testing.assert_close(found[:, :dim], wanted[:, None].expand(-1, dim))
    # Weighted edges, as the explanation has them, in each layer.
    weights = [torch.tensor([edge[2] for edge in EDGES]).double()] * rounds
    found = model.features(
        Incoming.of(index, 4), torch.tensor([0]), torch.tensor([0]), pairs, weights
    )
    torch.testing.assert_close(found[:, 0], recursion(toy(), "times", "sum", 0, 1, rounds, beta))
