import math
from collections.abc import Callable

import networkx as nx
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency
from polypath.graphs.encoders import EncoderConfig, GraphEncoder
from polypath.graphs.products import EdgeWeights, mean_with_self, symmetric
from polypath.graphs.reweighting import (
    ReweightedEncoder,
    Reweighting,
    agreement,
    softmax_of_columns,
    strengthened,
)

KARATE = adjacency_of(nx.karate_club_graph())


def dense(adjacency: Adjacency, weights: EdgeWeights) -> Tensor:
    """(N, N): row r, column c."""
    found = torch.zeros(adjacency.num_nodes, adjacency.num_nodes, dtype=weights.values.dtype)
    found[tuple(adjacency.edge_index)] = weights.values
    return found if weights.own is None else found + weights.own.diag()


def doubled(weights: EdgeWeights) -> EdgeWeights:
    return EdgeWeights(
        weights.values.double(), None if weights.own is None else weights.own.double()
    )


def scores_for(adjacency: Adjacency) -> EdgeWeights:
    """Chances between 0 and 1."""
    values, own = torch.rand(len(adjacency.nodes)), torch.rand(adjacency.num_nodes)
    return doubled(EdgeWeights(values, own))


@given(graphs())
def test_weights_are_those_of_dense_matrices(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    for base in map(doubled, (symmetric(adjacency), mean_with_self(adjacency))):
        scores = scores_for(adjacency)
        support = dense(adjacency, base) != 0
        blank = dense(adjacency, scores).masked_fill(~support, -math.inf)
        w = dense(adjacency, base)
        wanted = w + 1.5 * blank.softmax(0) * w.sum(0)
        found = dense(adjacency, strengthened(adjacency, base, scores, 1.5))
        torch.testing.assert_close(found, wanted)
        assert torch.equal(found != 0, support)
        torch.testing.assert_close(found.sum(0), 2.5 * w.sum(0))
        same = strengthened(adjacency, base, scores, 0.0)
        assert torch.equal(same.values, base.values) and torch.equal(same.own, base.own)


def test_without_self_loops_columns_gain_as_much() -> None:
    base = EdgeWeights(torch.rand(len(KARATE.nodes), dtype=torch.float64))
    scores = EdgeWeights(torch.rand(len(KARATE.nodes), dtype=torch.float64))
    found = strengthened(KARATE, base, scores, 0.5)
    assert found.own is None
    torch.testing.assert_close(dense(KARATE, found).sum(0), 1.5 * dense(KARATE, base).sum(0))


@given(graphs())
def test_chances_differ_in_a_column_by_e_at_most(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    scores = scores_for(adjacency)
    scores.values.round_()  # as far apart as chances can be
    shares = dense(adjacency, softmax_of_columns(adjacency, scores))
    torch.testing.assert_close(shares.sum(0), torch.ones_like(shares[0]))
    least = shares.masked_fill(shares == 0, math.inf).amin(0)
    assert (shares.amax(0) / least).max() <= math.e * (1 + 1e-12)


class Bilinear(nn.Module):
    """A link predictor on states, as the paper's: a network on their product."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.network(left * right)[:, 0]


def test_an_entry_asks_for_a_link_of_what_is_around_its_column_and_its_row() -> None:
    h, predict = torch.randn(34, 8), Bilinear(8)
    base = symmetric(KARATE)
    found = dense(KARATE, agreement(KARATE, base, h, predict))
    around = dense(KARATE, base) @ h
    for r, c in [(0, 1), (1, 0), (33, 8), (5, 5), (0, 0)]:
        wanted = predict(around[c : c + 1], h[r : r + 1]).sigmoid()
        torch.testing.assert_close(found[r, c], wanted[0])
    assert not torch.allclose(found, found.T)


def made(seed: int, dropout: float = 0.0) -> tuple[ReweightedEncoder, Bilinear]:
    torch.manual_seed(seed)
    config = EncoderConfig(34, ids=True, layers=2, dim=8, dropout=dropout)
    encoder = ReweightedEncoder(GraphEncoder(config), KARATE, symmetric(KARATE))
    return encoder, Bilinear(8)


def trained(alpha: float | None) -> tuple[Tensor, list[Tensor]]:
    """The states and weights after a few steps of which every second weighs edges anew."""
    encoder, predict = made(3, dropout=0.5)
    steps, seen = torch.optim.Adam([*encoder.parameters(), *predict.parameters()], 0.01), []
    for epoch in range(6):
        if alpha is not None and Reweighting(alpha, 2, 2).due(epoch):
            encoder.update(alpha, predict)
        h = encoder(KARATE)
        loss = nn.functional.softplus(-predict(*h[KARATE.edges])).mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
        seen.append(encoder.values.clone())
    return encoder.eval()(KARATE).detach(), seen


def test_without_alpha_training_is_as_it_was() -> None:
    plain, none, some = trained(None), trained(0.0), trained(2.0)
    assert torch.equal(plain[0], none[0])
    assert not torch.allclose(plain[0], some[0])
    changes = [not torch.equal(a, b) for a, b in zip(some[1], some[1][1:], strict=False)]
    assert changes == [False, True, False, True, False]


def test_weights_are_constant_and_made_from_the_base() -> None:
    encoder, predict = made(0)
    plain = encoder(KARATE).detach()
    base = symmetric(KARATE)
    wanted = strengthened(KARATE, base, agreement(KARATE, base, plain, predict), 2.0)
    encoder.update(2.0, predict)
    torch.testing.assert_close(encoder.values, wanted.values.detach())
    torch.testing.assert_close(encoder.own, wanted.own.detach())
    assert not encoder.values.requires_grad
    first = encoder.values.clone()

    def always(left: Tensor, right: Tensor) -> Tensor:
        return predict(left, right) * 0 + 1.0

    encoder.update(2.0, always)  # whatever the states: every share is one over the column's entries
    torch.testing.assert_close(encoder.values, even := encoder.values.clone())
    encoder.update(2.0, always)
    assert torch.equal(encoder.values, even) and not torch.allclose(even, first)
    columns = (KARATE.degrees + 1)[KARATE.nodes]
    sums = dense(KARATE, base).sum(0)[KARATE.nodes]
    torch.testing.assert_close(even, base.values + 2 * sums / columns)
    encoder.train().update(0.5, predict)
    assert encoder.training and encoder.encoder.training


def test_states_keep_the_weights() -> None:
    (one, predict), (other, _) = made(0), made(1)
    one.update(2.0, predict)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(KARATE), other(KARATE))


def test_part_of_the_graph_keeps_its_weights() -> None:
    encoder, predict = made(0)
    encoder.update(2.0, predict)
    part = KARATE.without(KARATE.edges[:, ::3])
    whole = dense(KARATE, EdgeWeights(encoder.values, encoder.own))
    values = whole[tuple(part.edge_index)]
    wanted = encoder.encoder(part, None, EdgeWeights(values, encoder.own))
    assert torch.equal(encoder(part), wanted)
    again = Adjacency(KARATE.starts, KARATE.nodes)
    assert torch.equal(encoder(again), encoder(KARATE))


def test_epochs_that_are_due() -> None:
    assert [epoch for epoch in range(20) if Reweighting(2, 5, 3).due(epoch)] == [5, 10, 15]
    assert [epoch for epoch in range(4) if Reweighting(2, 1, 1).due(epoch)] == [1, 2, 3]


def test_wrong_input_is_told() -> None:
    settings: list[Callable[[], object]] = [
        lambda: Reweighting(alpha=-1),
        lambda: Reweighting(interval=0),
        lambda: Reweighting(warm_up=-1),
        lambda: Reweighting(alpha=math.nan),
    ]
    for call in settings:
        with pytest.raises(InputError, match="reweighting: alpha="):
            call()
    encoder, _ = made(0)
    more = KARATE.joined(torch.tensor([[0], [33]]))
    with pytest.raises(InputError, match="edges that its graph does not have"):
        encoder(more)
    with pytest.raises(InputError, match="of 34 nodes got a graph of 35"):
        encoder(Adjacency.of(KARATE.edge_index, 35))
