import networkx as nx
import pytest
import torch

from graphs_at_random import adjacency_of, all_pairs
from polypath.errors import InputError
from polypath.graphs import decoders as module
from polypath.graphs.decoders import ProductMLP, ProductMLPConfig
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.predictors import link_scores

KARATE = adjacency_of(nx.karate_club_graph())
PAIRS = all_pairs(34)
X = torch.randn(34, 5, generator=torch.Generator().manual_seed(0))


def made(**values: object) -> ProductMLP:
    torch.manual_seed(0)
    encoder = EncoderConfig(**{"inputs": 5, "layers": 1, "dim": 8} | values)  # type: ignore[arg-type]
    return ProductMLP(ProductMLPConfig(encoder, layers=2)).eval()


def test_an_mlp_reads_features_alone() -> None:
    own = made(layers=0)
    h = X @ own.encoder.linear.weight.T + own.encoder.linear.bias
    first, last = own.decoder[0], own.decoder[-1]
    hidden = (h[PAIRS[0]] * h[PAIRS[1]] @ first.weight.T + first.bias).relu()
    wanted = (hidden @ last.weight.T + last.bias)[:, 0]
    torch.testing.assert_close(own.score(KARATE, X, PAIRS), wanted)
    empty = KARATE.without(KARATE.edges)
    assert torch.equal(own.score(empty, X, PAIRS), own.score(KARATE, X, PAIRS))


def test_a_gcn_sees_neighbours() -> None:
    own = made()
    dense = torch.from_numpy(nx.to_numpy_array(nx.karate_club_graph(), weight=None)).float()
    dense += torch.eye(34)
    scale = dense.sum(1).rsqrt()
    layer = own.encoder.layers[0]
    weight = next(p for p in layer.parameters() if p.ndim == 2)
    bias = next(p for p in layer.parameters() if p.ndim == 1)
    h = scale[:, None] * (dense @ (scale[:, None] * (X @ weight.T))) + bias
    wanted = own.decoder(h[PAIRS[0]] * h[PAIRS[1]])[:, 0]
    torch.testing.assert_close(own.score(KARATE, X, PAIRS), wanted, rtol=1e-4, atol=1e-5)


def test_orders_and_pieces_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    own = made()
    wanted = own.score(KARATE, X, PAIRS)
    assert torch.equal(wanted, own.score(KARATE, X, PAIRS.flip(0)))
    monkeypatch.setattr(module, "PIECE", 100)
    torch.testing.assert_close(link_scores(own, KARATE, X, PAIRS), wanted)
    assert link_scores(own, KARATE, X, PAIRS[:, :0]).shape == (0,)


def test_wrong_input_is_told() -> None:
    for values in ({"layers": 0}, {"dropout": 1.0}):
        with pytest.raises(InputError, match="ProductMLP"):
            ProductMLPConfig(EncoderConfig(5), **values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a node with itself"):
        made().score(KARATE, X, torch.tensor([[1], [1]]))
