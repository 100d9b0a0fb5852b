from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graphs_at_random import adjacency_of, all_pairs, from_networkx, graphs
from polypath.errors import InputError
from polypath.graphs import (
    Ragged,
    adamic_adar,
    overlap,
    resource_allocation,
    shared_neighbours,
    split_links,
)
from polypath.graphs import ncn as module
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.ncn import (
    NCN,
    NCNC,
    Calibration,
    NCNCConfig,
    NCNConfig,
    States,
    drawn,
    thinned,
)
from polypath.graphs.predictors import link_scores
from polypath.training.links import LinkTask, LinkTraining, fit_links

GRAPH = nx.karate_club_graph()
KARATE = adjacency_of(GRAPH)
CORA = Calibration(scale=4.3, offset=2.8, prior=0.75, weight=1.0)
NEAR = Calibration(scale=3.0, offset=0.1, prior=0.8, weight=0.9)
"""Its weights are far from 0 and 1 where nothing has been learnt."""


def encoder(nodes: int = 34) -> EncoderConfig:
    return EncoderConfig(nodes, ids=True, convolution="pure-gcn", layers=1, dim=6)


def made(kind: Callable[[Any], nn.Module], config: Any) -> Any:
    """In float64 and evaluation mode, of one seed."""
    torch.manual_seed(0)
    return kind(config).double().eval()


def completing(**values: Any) -> NCNC:
    return made(NCNC, NCNCConfig(encoder(), **{"calibration": NEAR} | values))


def by_hand(graph: nx.Graph, h: Tensor, own: Any, pair: tuple[int, int], depth: int) -> Tensor:
    """A pair's logit as the equations read, from states h (N, D)."""
    i, j = pair
    pooled = h if own.transform is None else h + own.transform(h)
    total = torch.zeros_like(h[0])
    for node in sorted(set(graph[i]) | set(graph[j])):
        if node in graph[i] and node in graph[j]:
            total = total + pooled[node]
        elif depth and node not in pair:
            missing = (node, j if node in graph[i] else i)
            p = calibrated(by_hand(graph, h, own, missing, depth - 1).detach(), NEAR)
            total = total + p * pooled[node]
    return own.last(own.of_product(h[i] * h[j]) + own.share * own.of_pool(total))[0]


def calibrated(logit: Tensor, by: Calibration) -> Tensor:
    """The authors' form."""
    p0 = (by.scale * (logit - by.offset)).sigmoid()
    return by.weight * by.prior * p0 / (by.prior * p0 + 1 - p0)


@given(graphs(least=2, most=7), st.sampled_from([0, 1, 2]), st.booleans())
def test_logits_and_gradients_are_those_of_the_equations(
    graph: nx.Graph, depth: int, transform: bool
) -> None:
    config = NCNCConfig(encoder(len(graph)), calibration=NEAR, depth=depth, transform=transform)
    own, adjacency = made(NCNC, config), adjacency_of(graph)
    pairs = all_pairs(len(graph))[:, ::3]
    found = own.score(adjacency, None, pairs)
    h = own.encoder(adjacency)
    wanted = torch.stack([by_hand(graph, h, own, tuple(pair), depth) for pair in pairs.T.tolist()])
    torch.testing.assert_close(found, wanted)
    slope = torch.randn_like(found)
    parameters = list(own.parameters())
    ours, theirs = (
        torch.autograd.grad(out, parameters, slope, materialize_grads=True)
        for out in (found, wanted)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_pool_of_the_worked_example() -> None:
    a, b, c, d, i, j = range(6)
    graph = nx.empty_graph(6)
    graph.add_edges_from([(i, a), (i, b), (i, c), (j, b), (j, c), (j, d)])
    adjacency, pair = adjacency_of(graph), torch.tensor([[i, i], [j, j]])
    found = overlap(adjacency, pair)  # twice in one batch
    assert [part.nodes.tolist() for part in found] == [[b, c, b, c], [a, a], [d, d]]
    h = torch.tensor([[5.0, 5], [1, 0], [0, 2], [7, 7], [0, 0], [0, 0]])
    states = States(adjacency, h, h)
    plain = NCN(NCNConfig(EncoderConfig(6, ids=True, dim=2)))
    torch.testing.assert_close(plain.pool(states, pair), torch.tensor([[1.0, 2.0]] * 2))
    own = NCNC(NCNCConfig(EncoderConfig(6, ids=True, dim=2), calibration=CORA)).eval()
    with torch.no_grad():
        own.last[-1].weight.zero_()
        own.last[-1].bias.fill_(2.8)  # every logit
    torch.testing.assert_close(
        own.completed(states, pair, 1), torch.tensor([[6.142857, 7.142857]] * 2)
    )


def test_calibration_has_the_values_of_cora() -> None:
    logits = torch.tensor([1.0, 2, 2.8, 3, 4], dtype=torch.float64)
    wanted = torch.tensor([0.00033, 0.02348, 0.42857, 0.63930, 0.99240], dtype=torch.float64)
    torch.testing.assert_close(CORA(logits), wanted, rtol=0, atol=5e-6)
    for by in (CORA, NEAR, Calibration(10, 3, 0.1, 0.5), Calibration(2.5, 6, 0.1, 1.05)):
        torch.testing.assert_close(by(logits), calibrated(logits, by), rtol=0, atol=1e-12)


def test_limits_of_the_calibration() -> None:
    pairs = all_pairs(34)[:, ::5]
    plain = completing(depth=0)
    wanted = link_scores(plain, KARATE, None, pairs)
    for nothing in (replace(NEAR, prior=0.0), replace(NEAR, weight=0.0)):
        assert torch.equal(
            link_scores(completing(calibration=nothing), KARATE, None, pairs), wanted
        )
    certain = completing(calibration=Calibration(offset=-1e9), transform=False)
    h = torch.randn(34, 6, dtype=torch.float64)
    dense = torch.from_numpy(nx.to_numpy_array(GRAPH, weight=None))
    either = ((dense[pairs[0]] + dense[pairs[1]]) > 0).double()
    edge = dense[pairs[0], pairs[1]]
    found = certain.completed(States(KARATE, h, h), pairs, 1)
    # The ends of an edge are next to each other; neither can be completed.
    torch.testing.assert_close(found, either @ h - edge[:, None] * (h[pairs[0]] + h[pairs[1]]))


def test_sums_of_states_reach_heuristics() -> None:
    pairs, degrees = all_pairs(34), KARATE.degrees.double()
    own = made(NCN, NCNConfig(encoder(), transform=False))
    for values, heuristic in (
        (torch.ones(34, dtype=torch.float64), shared_neighbours),
        (1 / degrees, resource_allocation),
        (1 / degrees.log(), adamic_adar),
    ):
        pooled = own.pool(States(KARATE, values[:, None], values[:, None]), pairs)
        # A node of degree 1 is never shared.
        torch.testing.assert_close(pooled[:, 0], heuristic(KARATE, pairs))
    counted = made(NCN, NCNConfig(encoder(), pool="count"))
    h = torch.zeros(34, 6, dtype=torch.float64)
    assert torch.equal(
        counted.pool(States(KARATE, h, h), pairs)[:, 0], shared_neighbours(KARATE, pairs)
    )


def test_without_its_share_of_the_pool_it_is_a_graph_auto_encoder() -> None:
    pairs = all_pairs(34)
    own, bare = made(NCN, NCNConfig(encoder())), made(NCN, NCNConfig(encoder(), pool="none"))
    missing, extra = bare.load_state_dict(own.state_dict(), strict=False)
    assert not missing and {name.split(".")[0] for name in extra} == {
        "transform",
        "of_pool",
        "share",
    }
    assert not torch.allclose(own.score(KARATE, None, pairs), bare.score(KARATE, None, pairs))
    with torch.no_grad():
        own.share.zero_()
    torch.testing.assert_close(own.score(KARATE, None, pairs), bare.score(KARATE, None, pairs))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_both_orders_of_a_pair_have_the_same_score(depth: int) -> None:
    own = completing(depth=depth).float()
    pairs = all_pairs(34)
    assert torch.equal(own.score(KARATE, None, pairs), own.score(KARATE, None, pairs.flip(0)))


def test_completion_weights_have_no_gradient() -> None:
    own, pairs = completing(), all_pairs(34)[:, ::7]
    noted: list[Tensor] = []
    completion = own.completion

    def note(states: States, missing: Tensor, depth: int) -> Tensor:
        noted.append(completion(states, missing, depth))
        return noted[-1]

    parameters = list(own.parameters())
    own.completion = note  # type: ignore[method-assign]
    free = torch.autograd.grad(own.score(KARATE, None, pairs).sigmoid().sum(), parameters)
    own.completion = lambda *_: noted[0].clone()  # type: ignore[method-assign]
    held = torch.autograd.grad(own.score(KARATE, None, pairs).sigmoid().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(free, held, strict=True))
    assert 0.01 < noted[0].mean() < 0.99
    # What reaches the state of a node that one end has alone is its weight.
    h = torch.randn(34, 6, dtype=torch.float64, requires_grad=True)
    del own.completion
    pair = torch.tensor([[0], [33]])
    own.completed(States(KARATE, h.detach(), h), pair, 1).sum().backward()
    found, dense = overlap(KARATE, pair), torch.zeros(34, dtype=torch.float64)
    dense[found.common.nodes] = 1
    for side, end in ((found.left, 33), (found.right, 0)):
        missing = torch.stack([side.nodes, torch.full_like(side.nodes, end)])
        dense[side.nodes] = completion(States(KARATE, h.detach(), h.detach()), missing, 1)
    torch.testing.assert_close(h.grad, dense[:, None].expand(34, 6))


def test_an_edge_of_the_batch_changes_states_and_overlap() -> None:
    own = made(NCN, NCNConfig(encoder()))
    with_it, without = KARATE, KARATE.without(torch.tensor([[0], [1]]))
    moved = (own.encoder(with_it) - own.encoder(without)).abs().sum(1) > 1e-9
    assert moved[:2].all() and not moved[33]
    pair = torch.tensor([[0], [2]])  # of which 1 is a neighbour
    assert 1 in overlap(with_it, pair).common.nodes and 1 not in overlap(without, pair).common.nodes


def test_common_neighbours_of_different_kinds_are_told_apart() -> None:
    """A ring of eight that looks the same from 2 and from 3, each of which shares one with 1."""
    one, red, two, blue_, one_, red_, three, blue = range(8)
    graph = adjacency_of(nx.cycle_graph(8))
    x = torch.zeros(8, 3)
    x[[one, one_, two, three], [0]] = 1
    x[[red, red_], 1], x[[blue, blue_], 2] = 1, 1
    pairs = torch.tensor([[one, one], [two, three]])
    features = EncoderConfig(3, layers=2, dim=8)
    scores = {}
    for pool in ("nodes", "count", "none"):
        own = made(NCN, NCNConfig(features, pool=pool))  # type: ignore[arg-type]
        h = own.encoder(graph, x.double())
        torch.testing.assert_close(h[two], h[three])
        scores[pool] = own.score(graph, x.double(), pairs)
    assert abs(scores["nodes"][0] - scores["nodes"][1]) > 1e-3
    for pool in ("count", "none"):
        torch.testing.assert_close(scores[pool][0], scores[pool][1])


def test_draws_of_nodes_have_unbiased_sums() -> None:
    counts = torch.tensor([0, 2, 9, 5, 40])
    side = Ragged(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), torch.arange(56))
    values = torch.randn(56, 1, dtype=torch.float64)
    sums = []
    for _ in range(3000):
        found, share = drawn(side, 5)
        assert found.counts.tolist() == [0, 2, 5, 5, 5]
        sums.append(found.pool(values, share.double())[:, 0])
    every = torch.stack(sums)
    wanted = side.pool(values)[:, 0]
    assert torch.equal(every[0, [0, 1, 3]], wanted[[0, 1, 3]])  # nothing is left out of these
    error = every.std(0) / 3000**0.5
    assert ((every.mean(0) - wanted).abs() <= 3 * error + 1e-12).all() and (error[[2, 4]] > 0).all()
    whole, share = drawn(side, None)
    assert whole is side and (share == 1).all()
    spaced, share = drawn(side, 5, random=False)
    assert spaced.nodes.tolist() == [0, 1, 2, 4, 6, 8, 10, *range(11, 16), 20, 28, 36, 44, 52]
    assert torch.equal(spaced.starts, found.starts)
    assert torch.equal(share, (counts / spaced.counts).repeat_interleave(spaced.counts))


def test_a_sampled_model_is_the_same_where_nothing_is_left_out() -> None:
    pairs = all_pairs(34)
    wanted = link_scores(completing(), KARATE, None, pairs)
    assert torch.equal(link_scores(completing(sampled_in_test=17), KARATE, None, pairs), wanted)
    few = completing(sampled_in_test=3)
    found = [link_scores(few, KARATE, None, pairs) for _ in range(2)]
    assert torch.equal(*found) and not torch.allclose(found[0], wanted)


@pytest.mark.parametrize("kind", [NCN, NCNC])
def test_the_encoder_runs_once_in_a_batch(kind: Any) -> None:
    own, calls = made(kind, NCNCConfig(encoder(), depth=2)), []
    own.encoder.register_forward_hook(lambda *_: calls.append(1))
    own.score(KARATE, None, all_pairs(34)[:, :50])
    assert len(calls) == 1


def test_depths_nest() -> None:
    pairs = all_pairs(34)[:, ::9]
    plain = made(NCN, NCNConfig(encoder()))
    none, once, twice = (completing(depth=depth) for depth in range(3))
    for own in (none, once, twice):
        own.load_state_dict(plain.state_dict())
    assert torch.equal(none.score(KARATE, None, pairs), plain.score(KARATE, None, pairs))
    first = once.score(KARATE, None, pairs)
    assert not torch.allclose(twice.score(KARATE, None, pairs), first)
    completion = twice.completion
    twice.completion = lambda states, missing, _: completion(states, missing, 1)
    assert torch.equal(twice.score(KARATE, None, pairs), first)


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    own, pairs = completing(depth=2), all_pairs(34)
    wanted = own.score(KARATE, None, pairs)
    plain = made(NCN, NCNConfig(encoder()))
    alone = plain.score(KARATE, None, pairs)
    monkeypatch.setattr(module, "PIECE", 97)
    torch.testing.assert_close(link_scores(own, KARATE, None, pairs), wanted)
    torch.testing.assert_close(link_scores(plain, KARATE, None, pairs), alone)
    assert link_scores(own, KARATE, None, pairs[:, :0]).shape == (0,)


def test_neighbours_are_left_out_of_each_list_apart() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(34, 34)
    for _ in range(500):
        found = thinned(KARATE, 0.4)
        counts[found.sources, found.nodes] += 1
    edges = torch.from_numpy(nx.to_numpy_array(GRAPH, weight=None)).bool()
    assert not counts[~edges].any()
    error = (0.6 * 0.4 / 500) ** 0.5
    assert ((counts[edges] / 500 - 0.6).abs() < 4.5 * error).all()
    assert not torch.equal(counts, counts.T)
    own = made(NCN, NCNConfig(encoder(), dropout=0.0, edge_dropout=0.5))
    states: list[States] = []
    own.pool = lambda given, _: states.append(given)
    for training in (True, False):
        own.train(training).decode(KARATE, own.encoder(KARATE), all_pairs(34))
    assert 30 < len(states[0].graph.nodes) < 120 and states[1].graph is KARATE


def test_with_its_own_edge_in_place_training_is_right_and_testing_is_not() -> None:
    """The direction of NoTLR: links that are trained on tell themselves."""
    split = split_links(
        from_networkx(nx.random_geometric_graph(500, 0.065, seed=0)),
        torch.Generator().manual_seed(0),
    )
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(1))
    task, batch = LinkTask(split, x, hits=30), split.train[:, :128]
    found = {}
    for removal in (True, False):
        torch.manual_seed(0)
        own = NCN(NCNConfig(EncoderConfig(16, convolution="pure-gcn", layers=1, dim=32)))
        fit = fit_links(own, task, LinkTraining(25, 128, 0.01, 0.01, removal), 0)
        seen = split.graph.without(batch) if removal else split.graph
        right, wrong = (link_scores(own, seen, x, each) for each in (batch, split.test_negatives))
        found[removal] = task.measure(right, wrong), fit.test
    assert found[False][0] > found[True][0] + 0.03 and found[False][1] < found[True][1] - 0.01


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: NCNConfig(encoder(), pool="node"), "did you mean 'nodes'"),  # type: ignore[arg-type]
        (lambda: NCNConfig(encoder(), dropout=1.0), "dropout=1"),
        (lambda: NCNCConfig(encoder(), pool="count"), "states of nodes are what it completes"),
        (lambda: NCNCConfig(encoder(), depth=-1), "depth=-1"),
        (lambda: NCNCConfig(encoder(), sampled=0), "sampled=0"),
        (lambda: NCNCConfig(encoder(), edge_dropout=-0.1), r"edge_dropout=-0\.1"),
        (lambda: Calibration(prior=-0.5), r"prior=-0\.5"),
    ],
)
def test_wrong_settings_are_told(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


def test_wrong_pairs_are_told() -> None:
    own = NCN(NCNConfig(encoder()))
    with pytest.raises(InputError, match="a node with itself"):
        own.score(KARATE, None, torch.tensor([[3], [3]]))
