"""One matrix of link predictors: every kind that can be saved enters it and passes the same checks.

To enter one, add a row to ROWS:

    Row("name", lambda nodes: MyPredictor(MyConfig(...)), x=features)

- `make` takes the number of nodes and draws from torch's generator.
- `x` gives what nodes are known by, from their number: `features`, `kinds` or `nothing`.
- `by_id=True` says that a score may change with the ids of nodes, and the row says why.
- `edges=False` says that it refuses pairs that are edges of the graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphs_at_random import adjacency_of, all_pairs, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency
from polypath.graphs.decoders import ProductMLP, ProductMLPConfig
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.link_moe import GateConfig, LinkMoE
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.ncn import NCN, NCNC, Calibration, NCNCConfig, NCNConfig
from polypath.graphs.pair_features import PAIR_FEATURES
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import KINDS, SavedPredictor
from polypath.graphs.scorers import COSINE, SCORES, HeuristicConfig, HeuristicScorer

FEATURES, COLOURS = 4, 3
NEAR = Calibration(scale=3.0, offset=0.1, prior=0.8, weight=0.9)
"""Its weights are far from 0 and 1 where nothing has been learnt."""


def features(nodes: int) -> Tensor:
    return torch.randn(nodes, FEATURES, generator=torch.Generator().manual_seed(nodes))


def kinds(nodes: int) -> Tensor:
    return torch.arange(nodes) % COLOURS


def nothing(nodes: int) -> None:
    return None


@dataclass(frozen=True)
class Row:
    name: str
    make: Callable[[int], nn.Module]
    x: Callable[[int], Tensor | None] = features
    by_id: bool = False
    edges: bool = True

    def made(self, nodes: int, seed: int = 0) -> nn.Module:
        """In evaluation mode, all parameters away from where they start, which may be zero."""
        torch.manual_seed(seed)
        module = self.make(nodes).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return module

    def pairs(self, graph: Adjacency) -> Tensor:
        """All that it scores, in both orders."""
        every = all_pairs(graph.num_nodes)
        return every if self.edges else every[:, ~graph.has(every)]


def encoder(**values: Any) -> EncoderConfig:
    return EncoderConfig(FEATURES, layers=2, dim=6, **values)


def of_ids(count: int) -> EncoderConfig:
    return EncoderConfig(count, ids=True, convolution="pure-gcn", layers=1, dim=6)


def ncn(of: EncoderConfig | None = None, **values: Any) -> Callable[[int], NCN]:
    return lambda _: NCN(NCNConfig(of or encoder(), **values))


def ncnc(of: EncoderConfig | None = None, **values: Any) -> Callable[[int], NCNC]:
    return lambda _: NCNC(NCNCConfig(of or encoder(), **{"calibration": NEAR} | values))


def nbfnet(**values: Any) -> Callable[[int], NBFNet]:
    return lambda _: NBFNet(NBFNetConfig(1, 6, 2, **values))


def heuristic(name: str) -> Callable[[int], HeuristicScorer]:
    return lambda _: HeuristicScorer(HeuristicConfig(name))


def link_moe(structure: tuple[str, ...], gate: GateConfig, wide: bool) -> Callable[[int], LinkMoE]:
    def make(nodes: int) -> LinkMoE:
        experts = [each(nodes) for each in (heuristic("aa"), ncnc(), nbfnet())]
        return LinkMoE.of(experts, FEATURES if wide else 0, structure, gate)

    return make


ROWS = [
    *(Row(name, heuristic(name), features if name == COSINE else nothing) for name in SCORES),
    Row("product of GCN", lambda _: ProductMLP(ProductMLPConfig(encoder(norm=True)))),
    Row(
        "product of features",
        lambda _: ProductMLP(ProductMLPConfig(EncoderConfig(FEATURES, layers=0, dim=6), 3)),
    ),
    # Each node has a state of its own, by its id.
    Row(
        "product of ids",
        lambda nodes: ProductMLP(ProductMLPConfig(of_ids(nodes))),
        nothing,
        by_id=True,
    ),
    Row("NCN", ncn(encoder(convolution="sage", norm=True, residual=True))),
    Row("NCN of kinds", ncn(of_ids(COLOURS), two_layers=True), kinds),
    Row("NCN of counts", ncn(encoder(convolution="pure-mean", jumping=True), pool="count")),
    Row("NCN without pool", ncn(encoder(convolution="pure-max"), pool="none")),
    Row("NCNC", ncnc(tail_activation=False)),
    Row("NCNC twice", ncnc(encoder(convolution="pure-sum"), depth=2, transform=False)),
    # Which of its neighbours a pair looks at is a matter of their ids.
    Row("NCNC of samples", ncnc(sampled=2, sampled_in_test=2), by_id=True),
    Row("NBFNet", nbfnet(dependent=False), nothing),
    Row("NBFNet that depends", nbfnet(), nothing),
    Row("NBFNet of sums", nbfnet(aggregate="sum", message="transe"), nothing),
    Row("NBFNet that rotates", nbfnet(aggregate="mean", message="rotate"), nothing),
    Row("NBFNet bare", nbfnet(aggregate="max", layer_norm=False, shortcut=False), nothing),
    Row("Link-MoE", link_moe(PAIR_FEATURES, GateConfig(dim=6), True), edges=False),
    Row(
        "Link-MoE of scores",
        link_moe((), GateConfig(("scores",), dim=6, last_layers=2), False),
        edges=False,
    ),
    Row("Link-MoE, global", link_moe((), GateConfig(()), False), edges=False),
]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
few = settings(max_examples=8)


def small() -> nx.Graph:
    """Ten nodes of many degrees, the last of which is isolated."""
    graph = nx.gnm_random_graph(9, 14, seed=2)
    graph.add_node(9)
    return graph


SMALL = adjacency_of(small())


def test_every_kind_has_a_row() -> None:
    assert {type(row.make(5)).__name__ for row in ROWS} == KINDS.keys()
    assert len({row.name for row in ROWS}) == len(ROWS)


@every_row
@given(graph=graphs())
@few
def test_scores_are_whole(row: Row, graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    own, x, pairs = row.made(len(graph)), row.x(len(graph)), row.pairs(adjacency)
    for some in (pairs[:, :0], pairs[:, :1], pairs, pairs.repeat(1, 3)):
        found = own.score(adjacency, x, some)
        assert found.shape == (some.shape[1],) and found.dtype == torch.float32
        assert found.isfinite().all()


@every_row
@given(graph=graphs(least=2))
@few
def test_both_orders_of_a_pair_score_alike(row: Row, graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    own, x, pairs = row.made(len(graph)), row.x(len(graph)), row.pairs(adjacency)
    found = link_scores(own, adjacency, x, pairs)
    assert torch.equal(link_scores(own, adjacency, x, pairs.flip(0)), found)


def double(x: Tensor | None) -> Tensor | None:
    return x.double() if x is not None and x.is_floating_point() else x


def close(found: Tensor, wanted: Tensor) -> None:
    """To what PageRank leaves open; all else is float64, or float32 that is rounded once."""
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@every_row
@given(graph=graphs(least=2), seed=st.integers(0, 99))
@few
def test_a_score_is_the_pairs_own(row: Row, graph: nx.Graph, seed: int) -> None:
    """Neither where a pair is in the batch changes it, nor what else is there."""
    adjacency, own = adjacency_of(graph), row.made(len(graph), seed).double()
    x, pairs = double(row.x(len(graph))), row.pairs(adjacency)
    found = link_scores(own, adjacency, x, pairs)
    order = torch.randperm(pairs.shape[1])
    close(link_scores(own, adjacency, x, pairs[:, order]), found[order])
    for some in order.split([1, len(order) - 1] if len(order) else []):
        close(link_scores(own, adjacency, x, pairs[:, some]), found[some])


@pytest.mark.parametrize("row", [r for r in ROWS if not r.by_id], ids=lambda row: row.name)
@given(graph=graphs(least=2), seed=st.integers(0, 99))
@few
def test_names_of_nodes_are_nothing_to_it(row: Row, graph: nx.Graph, seed: int) -> None:
    adjacency, own = adjacency_of(graph), row.made(len(graph), seed).double()
    x, pairs = double(row.x(len(graph))), row.pairs(adjacency)
    place = torch.randperm(len(graph))
    renamed = Adjacency.of(place[adjacency.edge_index], len(graph))
    moved = None if x is None else x[place.argsort()]
    found = link_scores(own, renamed, moved, place[pairs])
    close(found, link_scores(own, adjacency, x, pairs))


@every_row
def test_graphs_without_edges_have_scores(row: Row) -> None:
    for nodes in (2, 5):
        empty = Adjacency.of(torch.zeros(2, 0, dtype=torch.int64), nodes)
        found = link_scores(row.made(nodes), empty, row.x(nodes), all_pairs(nodes))
        assert found.shape == (nodes * (nodes - 1),) and found.isfinite().all()


@every_row
def test_what_is_read_scores_as_what_was_saved(row: Row, tmp_path: Path) -> None:
    own, x, pairs = row.made(10), row.x(10), row.pairs(SMALL)
    SavedPredictor(own, SMALL, list("abcdefghij"), x).save(tmp_path)
    found = SavedPredictor.load(tmp_path)
    assert torch.equal(found.scores(pairs), link_scores(own, SMALL, x, pairs))


@every_row
def test_scores_are_the_same_twice_and_leave_no_trace(row: Row) -> None:
    own, x, pairs = row.made(10).train(), row.x(10), row.pairs(SMALL)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    drawn = torch.get_rng_state()
    found = link_scores(own, SMALL, x, pairs)
    assert torch.equal(link_scores(own, SMALL, x, pairs), found) and not found.requires_grad
    assert own.training and torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


@every_row
def test_gradients_reach_everything(row: Row) -> None:
    own, x, pairs = row.made(10), row.x(10), row.pairs(SMALL)
    found = own.score(SMALL, x, pairs)
    (found * torch.randn_like(found)).sum().backward()
    for name, parameter in own.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@every_row
def test_empty_batches_have_gradients_too(row: Row) -> None:
    own = row.made(10).train()
    own.score(SMALL, row.x(10), torch.zeros(2, 0, dtype=torch.int64)).sum().backward()
    assert not any(p.grad.any() for p in own.parameters() if p.grad is not None)


@every_row
def test_double_precision_says_the_same(row: Row) -> None:
    own, x, pairs = row.made(10), row.x(10), row.pairs(SMALL)
    single = link_scores(own, SMALL, x, pairs)
    wide = link_scores(own.double(), SMALL, double(x), pairs)
    assert wide.dtype == torch.float64 and wide.std() > 1e-3
    torch.testing.assert_close(wide.float(), single, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Wrong:
    pairs: Tensor
    told: str


WRONG = [
    Wrong(torch.tensor([[9, 0], [8, 10]]), r"pair 1 is \(0, 10\): ids are 0 … 9 here"),
    Wrong(torch.tensor([[-1], [8]]), r"pair 0 is \(-1, 8\): ids are 0 … 9 here"),
    Wrong(torch.tensor([[9, 3], [8, 3]]), r"pair 1 is \(3, 3\): a node with itself"),
    Wrong(torch.tensor([[0, 9], [1, 9], [2, 9]]), r"pairs \(3, 2\) of torch.int64; \(2, B\)"),
    Wrong(torch.tensor([0, 9]), r"pairs \(2,\) of torch.int64; \(2, B\)"),
    Wrong(torch.tensor(0), r"pairs \(\) of torch.int64; \(2, B\)"),
    Wrong(torch.tensor([[0], [9]]).int(), r"pairs \(2, 1\) of torch.int32; \(2, B\)"),
    Wrong(torch.tensor([[0.0], [9.0]]), r"pairs \(2, 1\) of torch.float32; \(2, B\)"),
]


@every_row
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.told)
def test_wrong_pairs_are_told(row: Row, wrong: Wrong) -> None:
    own, x = row.made(10), row.x(10)
    for score in (own.score, lambda *given: link_scores(own, *given)):
        with pytest.raises(InputError, match=wrong.told):
            score(SMALL, x, wrong.pairs)


@pytest.mark.parametrize("row", [r for r in ROWS if r.x is features], ids=lambda row: row.name)
def test_wrong_features_are_told(row: Row) -> None:
    own, pairs = row.made(10), row.pairs(SMALL)
    for x in (None, features(9), features(11), features(10)[:, 0], kinds(10)):
        with pytest.raises(InputError, match="features"):
            link_scores(own, SMALL, x, pairs)
