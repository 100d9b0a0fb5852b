import warnings
from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs.convolutions import GCNLayer, SAGELayer
from polypath.graphs.dropout import dropout
from polypath.graphs.encoders import EncoderConfig, GraphEncoder
from polypath.graphs.products import EdgeWeights, mean_of_neighbours, symmetric

KARATE = adjacency_of(nx.karate_club_graph())


def peers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_geometric.nn

        return torch_geometric.nn


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (7, 5)])
def test_layers_with_weights_are_those_of_torch_geometric(inputs: int, outputs: int) -> None:
    x = torch.randn(34, inputs)
    theirs = peers().GCNConv(inputs, outputs)
    nn.init.normal_(theirs.bias)
    ours = GCNLayer(inputs, outputs)
    ours.load_state_dict({"weight": theirs.lin.weight, "bias": theirs.bias})
    torch.testing.assert_close(
        ours(KARATE, x, symmetric(KARATE)), theirs(x, KARATE.edge_index), rtol=1e-5, atol=1e-5
    )
    theirs = peers().SAGEConv(inputs, outputs)
    sage = SAGELayer(inputs, outputs)
    sage.neighbours.load_state_dict(theirs.lin_l.state_dict())
    sage.root.load_state_dict(theirs.lin_r.state_dict())
    torch.testing.assert_close(
        sage(KARATE, x, mean_of_neighbours(KARATE)),
        theirs(x, KARATE.edge_index),
        rtol=1e-5,
        atol=1e-5,
    )


def test_given_weights_are_those_of_torch_geometric() -> None:
    x, values = torch.randn(34, 5), torch.rand(len(KARATE.nodes))
    theirs = peers().GCNConv(5, 3, normalize=False)
    encoder = GraphEncoder(EncoderConfig(5, layers=1, dim=3)).eval()
    encoder.layers[0].load_state_dict({"weight": theirs.lin.weight, "bias": theirs.bias})
    # Ours weighs the neighbours of a row; theirs, messages along edge_index.
    wanted = theirs(x, KARATE.edge_index.flip(0), values)
    torch.testing.assert_close(encoder(KARATE, x, EdgeWeights(values)), wanted)


@given(graphs())
def test_pure_convolutions_are_products_of_matrices(graph: nx.Graph) -> None:
    adjacency = adjacency_of(graph)
    matrix = torch.from_numpy(nx.to_numpy_array(graph, weight=None)).float()
    x = torch.randn(len(graph), 4)
    half = torch.diag((matrix.sum(1) + 1) ** -0.5)
    maxima = torch.stack(
        [x[list(graph[node])].amax(0) if graph[node] else torch.zeros(4) for node in graph]
    )
    wanted = {
        "pure-gcn": half @ (matrix + torch.eye(len(graph))) @ half @ x,
        "pure-sum": matrix @ x,
        "pure-mean": matrix @ x / matrix.sum(1, keepdim=True).clamp_min(1),
        "pure-max": maxima,
    }
    for convolution, value in wanted.items():
        encoder = GraphEncoder(EncoderConfig(4, convolution=convolution, layers=1, dim=4))  # type: ignore[arg-type]
        with torch.no_grad():
            encoder.linear.weight.copy_(torch.eye(4))  # type: ignore[union-attr]
            encoder.linear.bias.zero_()  # type: ignore[union-attr]
        torch.testing.assert_close(encoder(adjacency, x), value, rtol=1e-4, atol=1e-5)


def test_residual_and_jumping_knowledge() -> None:
    config = EncoderConfig(4, convolution="pure-sum", layers=3, dim=4)
    x = torch.randn(34, 4)
    matrix = torch.from_numpy(nx.to_numpy_array(nx.karate_club_graph(), weight=None)).float()
    for residual in (False, True):
        encoder = GraphEncoder(replace(config, residual=residual, jumping=True))
        h, total = encoder.linear(x), torch.zeros(34, 4)  # type: ignore[misc]
        assert encoder.jumps is not None and encoder.jumps.shape == (3,)
        for jump in encoder.jumps:
            h = matrix @ h + (h if residual else 0)
            total = total + jump * h
        torch.testing.assert_close(encoder(KARATE, x), total, rtol=1e-4, atol=1e-3)


def test_weighted_layers_have_norm_dropout_and_relu_between_them() -> None:
    encoder = GraphEncoder(EncoderConfig(4, layers=2, dim=6, norm=True, dropout=0.5))
    x = torch.randn(34, 4)
    weights = symmetric(KARATE)
    first = encoder.norms[0](encoder.layers[0](KARATE, x, weights))
    torch.testing.assert_close(
        encoder.eval()(KARATE, x), encoder.layers[1](KARATE, first.relu(), weights)
    )
    assert len(encoder.norms) == 1  # the last layer has none
    encoder.train()
    torch.manual_seed(3)
    found = encoder(KARATE, x)
    torch.manual_seed(3)
    torch.testing.assert_close(
        found, encoder.layers[1](KARATE, dropout(first, 0.5).relu(), weights)
    )


def test_dropped_entries_leave_the_mean_and_the_normalisation_counts_them() -> None:
    config = EncoderConfig(1, convolution="pure-sum", layers=1, dim=1, edge_dropout=0.3)
    encoder = GraphEncoder(config)
    with torch.no_grad():
        encoder.linear.weight.fill_(1)  # type: ignore[union-attr]
        encoder.linear.bias.zero_()  # type: ignore[union-attr]
        x = torch.ones(34, 1)
        drawn = torch.stack([encoder(KARATE, x) for _ in range(600)])
        kept = drawn * 0.7  # numbers of neighbours
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-4)
    degrees = KARATE.degrees.float()[:, None]
    error = (degrees * 0.3 / 0.7 / 600) ** 0.5
    assert ((drawn.mean(0) - degrees).abs() < 4.5 * error).all()
    gcn = GraphEncoder(replace(config, convolution="pure-gcn"))
    gcn.load_state_dict(encoder.state_dict())
    torch.manual_seed(5)
    values = dropout(torch.ones(len(KARATE.nodes)), 0.3)
    weights = symmetric(KARATE, values)
    wanted = encoder.eval()(KARATE, x, weights)
    torch.manual_seed(5)
    dropout(x, 0.0)
    torch.testing.assert_close(gcn(KARATE, x), wanted)


def test_dropped_entries_of_a_maximum_are_left_out() -> None:
    star = adjacency_of(nx.star_graph(3))
    encoder = GraphEncoder(
        EncoderConfig(4, ids=True, convolution="pure-max", layers=1, dim=4, edge_dropout=0.5)
    )
    with torch.no_grad():
        encoder.embedding.weight.copy_(torch.eye(4))  # type: ignore[union-attr]
    seen = {tuple(encoder(star)[0].tolist()) for _ in range(100)}
    assert seen == {(0, a, b, c) for a in (0, 2) for b in (0, 2) for c in (0, 2)}
    assert encoder.eval()(star)[0].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("convolution", ["pure-gcn", "pure-max", "gcn", "sage"])
def test_features_that_are_mostly_zero_are_as_others(convolution: Any, residual: bool) -> None:
    config = EncoderConfig(40, convolution=convolution, layers=2, dim=40, residual=residual)
    encoder = GraphEncoder(config).double()
    x = torch.randn(34, 40, dtype=torch.float64) * (torch.rand(34, 40) < 0.05)
    sparse, whole = encoder(KARATE, x), encoder(KARATE, x.clone().requires_grad_())
    torch.testing.assert_close(sparse, whole)
    slope, parameters = torch.randn_like(whole), list(encoder.parameters())
    ours, theirs = (torch.autograd.grad(h, parameters, slope) for h in (sparse, whole))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_ids_are_orthogonal_embeddings() -> None:
    config = EncoderConfig(7, ids=True, layers=0, dim=7)
    encoder = GraphEncoder(config).eval()
    ids = torch.randint(7, (34,))
    found = encoder(KARATE, ids)
    torch.testing.assert_close(found @ found.T, (ids[:, None] == ids).float(), rtol=0, atol=1e-5)
    own = GraphEncoder(replace(config, inputs=34, dim=64)).eval()
    torch.testing.assert_close(own(KARATE), own(KARATE, torch.arange(34)))
    torch.testing.assert_close(own(KARATE) @ own(KARATE).T, torch.eye(34), rtol=0, atol=1e-5)


@pytest.mark.parametrize("convolution", ["pure-gcn", "pure-mean", "pure-max", "gcn", "sage"])
def test_gradients_are_those_of_differences(convolution: Any) -> None:
    graph = adjacency_of(nx.path_graph(4))
    encoder = GraphEncoder(EncoderConfig(3, convolution=convolution, layers=2, dim=2, norm=True))
    encoder.double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: encoder(graph, value), (x,))
    gradients = torch.autograd.grad(encoder(graph, x).sum(), list(encoder.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("config", "x", "told"),
    [
        (EncoderConfig(3), torch.ones(34, 4), r"x is \(34, 4\).*features \(34, 3\)"),
        (EncoderConfig(3), None, "x is none"),
        (EncoderConfig(3, ids=True), None, "3 ids, 34 nodes"),
        (EncoderConfig(3, ids=True), torch.full((34,), 3), "ids from 3 to 3; 0 … 2 are known"),
        (EncoderConfig(3, ids=True), torch.ones(34), "of torch.float32; ids"),
    ],
)
def test_wrong_input_is_told(config: EncoderConfig, x: Tensor | None, told: str) -> None:
    with pytest.raises(InputError, match=told):
        GraphEncoder(config)(KARATE, x)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"convolution": "pure-gnc"}, "did you mean 'pure-gcn'"),
        ({"dim": 0}, "dim=0"),
        ({"tail_dropout": 1.0}, r"tail_dropout=1\.0"),
    ],
)
def test_wrong_settings_are_told(values: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        EncoderConfig(3, **values)
    encoder = GraphEncoder(EncoderConfig(3, convolution="pure-max"))
    with pytest.raises(InputError, match="pure-max takes no weights"):
        encoder(KARATE, torch.ones(34, 3), symmetric(KARATE))
