from itertools import combinations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings

from graphs_at_random import adjacency_of, all_pairs, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency, katz, personalised_pagerank, undirected
from polypath.graphs.pair_features import (
    HEURISTICS,
    OF_GATE,
    ORBITS,
    PAIR_FEATURES,
    check_hidden,
    pair_features,
    width,
)

LN2, LN3 = 0.6931471805599453, 1.0986122886681098
PAIR = torch.tensor([[0], [2]])


def of(edges: list[tuple[int, int]], nodes: int = 4) -> Adjacency:
    return Adjacency.of(undirected(torch.tensor(edges).T, nodes), nodes)


SQUARE = of([(0, 1), (1, 2), (2, 3), (3, 0)])
DIAMOND = of([(0, 1), (1, 2), (2, 3), (3, 0), (1, 3)])
PATH = of([(0, 1), (1, 2)], 3)
"""A triangle whose edge (0, 2) is taken out."""


def columns(graph: Adjacency, pairs: torch.Tensor = PAIR) -> dict[str, float]:
    """The columns of the gate for one pair, on their own scale again where they are counts."""
    names = [*OF_GATE[:-1], "low", "high"]
    values = dict(zip(names, pair_features(graph, pairs)[0].double().tolist(), strict=True))
    return {n: v if n == "sp" else float(torch.tensor(v).expm1()) for n, v in values.items()}


@pytest.mark.parametrize(
    ("graph", "cn", "aa", "ra", "katz3", "degree"),
    [
        (SQUARE, 2, 2 / LN2, 1.0, 5e-5, 2),
        (DIAMOND, 2, 1.820478, 0.666667, 5.025e-5, 2),
        (PATH, 1, 1 / LN2, 0.5, 2.5e-5, 1),
    ],
)
def test_heuristics_have_the_values_of_the_specification(
    graph: Adjacency, cn: float, aa: float, ra: float, katz3: float, degree: float
) -> None:
    found = columns(graph)
    assert found["cn"] == pytest.approx(cn, rel=1e-6) and found["sp"] == 0.5
    assert found["aa"] == pytest.approx(aa, rel=1e-6)
    assert found["ra"] == pytest.approx(ra, rel=1e-6)
    assert found["katz"] * 0.005**2 == pytest.approx(katz3, rel=1e-6)
    assert float(katz(graph, PAIR)) == pytest.approx(katz3)
    assert found["low"] == found["high"] == pytest.approx(degree)


def test_a_pair_out_of_reach_has_zeros() -> None:
    apart = of([(0, 1), (2, 3)])
    found = columns(apart)
    assert found.pop("low") == found.pop("high") == pytest.approx(1)
    assert set(found.values()) == {0}


def test_a_walk_that_is_everywhere_alike_counts_one() -> None:
    """On a complete graph without one edge, from far away: N times PageRank is about 1."""
    graph = nx.complete_graph(60)
    graph.remove_edge(0, 2)
    adjacency = adjacency_of(graph)
    found = columns(adjacency)["ppr"]
    assert found == pytest.approx(60 * float(personalised_pagerank(adjacency, PAIR)), rel=1e-5)
    assert 0.5 < found < 1.5


@settings(max_examples=10)
@given(graphs(least=4, most=9))
def test_both_orders_of_a_pair_have_the_same_features(graph: nx.Graph) -> None:
    adjacency, pairs = adjacency_of(graph), all_pairs(len(graph))
    pairs = pairs[:, ~adjacency.has(pairs)]
    found = pair_features(adjacency, pairs, PAIR_FEATURES)
    assert torch.equal(found, pair_features(adjacency, pairs.flip(0), PAIR_FEATURES))
    assert found.shape == (pairs.shape[1], width(PAIR_FEATURES)) and found.isfinite().all()
    # A pair does not depend on those beside it, but for the end from which PageRank sees it.
    alone = [pair_features(adjacency, pair[:, None], PAIR_FEATURES) for pair in pairs.T[:4]]
    if alone:
        torch.testing.assert_close(torch.cat(alone), found[:4], rtol=0, atol=1e-5)


@given(graphs(least=4, most=7))
def test_orbits_count_what_holds_both(graph: nx.Graph) -> None:
    adjacency, pairs = adjacency_of(graph), all_pairs(len(graph))
    pairs = pairs[:, ~adjacency.has(pairs)]
    found = pair_features(adjacency, pairs, ["orbits"]).double().expm1()
    wanted = torch.zeros_like(found)
    for row, (i, j) in enumerate(pairs.T.tolist()):
        for size in (1, 2):
            for others in combinations(set(graph) - {i, j}, size):
                part = graph.subgraph([i, j, *others])
                if nx.is_connected(part):
                    wanted[row, COLUMN[kind(part, i, j)]] += 1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


Kind = tuple[int, int, tuple[int, ...]]


def kind(part: nx.Graph, i: int, j: int) -> Kind:
    """How far apart, how many edges, and both degrees."""
    degrees = tuple(sorted([part.degree(i), part.degree(j)]))
    return nx.shortest_path_length(part, i, j), part.number_of_edges(), degrees


COLUMN: dict[Kind, int] = {
    (2, 2, (1, 1)): ORBITS.index((2, 1, 1)),
    (2, 3, (1, 2)): ORBITS.index((2, 4, 5)),
    (3, 3, (1, 1)): ORBITS.index((3, 4, 4)),
    (2, 3, (1, 1)): ORBITS.index((2, 6, 6)),
    (2, 4, (2, 2)): ORBITS.index((2, 8, 8)),
    (2, 4, (1, 2)): ORBITS.index((2, 9, 10)),
    (2, 5, (2, 2)): ORBITS.index((2, 12, 12)),
}
"""What pairs without an edge are in, of induced graphlets of three and four nodes."""


def test_concentration_of_both_ends() -> None:
    """On a diamond, of the rim's pair: 0 and 2 have neighbours 1 and 3, which are linked."""
    low, high, met_low, met_high = pair_features(DIAMOND, PAIR, ["concentration"])[0].tolist()
    # The local clustering coefficient of a rim node is 1; its walks of one edge all end at shared
    # neighbours.
    assert low == high == pytest.approx(1.0) and met_low == met_high == pytest.approx(1.0)
    wanted = nx.clustering(nx.karate_club_graph())
    pair = torch.tensor([[0], [33]])
    found = pair_features(adjacency_of(nx.karate_club_graph()), pair, ["concentration"])[0]
    assert sorted(found[:2].tolist()) == pytest.approx(sorted([wanted[0], wanted[33]]))
    shared = len(list(nx.common_neighbors(nx.karate_club_graph(), 0, 33)))
    assert found[2:].tolist() == pytest.approx([shared / 17, shared / 16])


def test_scales_keep_the_order_of_heuristics() -> None:
    karate = adjacency_of(nx.karate_club_graph())
    pairs = all_pairs(34)
    pairs = pairs[:, ~karate.has(pairs)]
    raw = katz(karate, pairs)
    order = HEURISTICS["katz"](karate, pairs).argsort(stable=True)
    assert (raw[order].diff() >= 0).all()


def test_a_pair_that_is_an_edge_is_refused() -> None:
    pairs = torch.tensor([[0, 3, 2], [2, 0, 1]])
    with pytest.raises(InputError, match=r"2 pairs are edges .* the first \(3, 0\)"):
        pair_features(SQUARE, pairs)
    with pytest.raises(InputError, match=r"the first \(2, 1\)"):
        check_hidden(SQUARE, pairs[:, 2:])
    assert pair_features(SQUARE.without(pairs), pairs).shape == (3, 8)
    with pytest.raises(InputError, match="a node with itself"):
        pair_features(SQUARE, torch.tensor([[1], [1]]))


def test_names_are_known() -> None:
    assert width() == 8 and width(["orbits", "cn"]) == 8
    with pytest.raises(InputError, match="did you mean 'degrees'"):
        width(["degree"])
    assert pair_features(SQUARE, PAIR[:, :0]).shape == (0, 8)
    assert pair_features(SQUARE, PAIR, []).shape == (1, 0)
