from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hosts import tiny_dino, tiny_model
from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.experts.layouts import linears
from polypath.language.families import decoder_of
from polypath.routing import Routing
from polypath.surgery.slices import (
    DenseLayer,
    Slices,
    dense_layer,
    fill,
    outputs,
    probes,
    sets_of,
)

DENSE = ["Llama", "Qwen3", "Gemma2", "DeepseekV3"]


def plain(dim: int, width: int, bias: bool) -> tuple[nn.Sequential, DenseLayer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(dim, width, bias), nn.ReLU(), nn.Linear(width, dim, bias))
    found = linears(network)
    dense = DenseLayer({"up": found["0"], "down": found["2"]}, "relu", network[2])
    return network, dense


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_layer_computes_what_its_module_does(kind: str) -> None:
    decoder = decoder_of(tiny_model(kind))
    layer = dense_layer(decoder, 0)
    rows = torch.randn(5, layer.dim)
    torch.testing.assert_close(layer.output(rows), decoder.mlp(0)(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        outputs(layer.weights(), layer.kind, rows)[:, 0], layer.output(rows), rtol=1e-4, atol=1e-5
    )


def test_a_detector_keeps_its_maps_in_the_layer_itself() -> None:
    decoder = decoder_of(tiny_dino())
    layer, block = dense_layer(decoder, 1), decoder.layers[1]
    assert layer.biased and (layer.width, layer.dim) == (24, 32)
    rows: Any = torch.randn(5, 32)
    torch.testing.assert_close(layer.output(rows), block.fc2(F.relu(block.fc1(rows))))


@given(
    dim=st.integers(1, 5),
    units=st.integers(1, 4),
    count=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_slices_that_have_every_unit_once_sum_to_the_layer(
    dim: int, units: int, count: int, bias: bool, seed: int
) -> None:
    network, dense = plain(dim, units * count, bias)
    order = torch.randperm(units * count, generator=torch.Generator().manual_seed(seed))
    slices = Slices(dense, order.view(count, units), share=1 / count)
    weights = (*slices.inner(), *slices.outer())
    rows = torch.randn(7, dim)
    every = outputs(weights, "relu", rows)
    torch.testing.assert_close(every.sum(1), network(rows), rtol=1e-4, atol=1e-5)
    assert slices.error(dense.output(probes(dense)), [range(count)]) < 1e-6


def test_a_last_bias_that_is_not_divided_is_told_by_the_sum() -> None:
    network, dense = plain(3, 8, bias=True)
    slices = Slices(dense, torch.arange(8).view(2, 4), share=1.0)
    parts = (*slices.inner(), *slices.outer())
    rows = torch.randn(4, 3)
    extra = outputs(parts, "relu", rows).sum(1) - network(rows)
    torch.testing.assert_close(extra, network[2].bias.expand(4, 3))
    assert slices.error(dense.output(probes(dense)), [range(2)]) > 1e-3


def test_a_bank_that_is_filled_computes_the_slices() -> None:
    _, dense = plain(4, 6, bias=True)
    slices = Slices(dense, torch.tensor([[0, 2, 4], [1, 3, 5]]), share=0.5)
    weights = (*slices.inner(), *slices.outer())
    bank = FeedForwardExperts(2, 4, 3, "relu", bias=True)
    fill(bank, weights)
    rows = torch.randn(5, 4)
    chosen = torch.tensor([[0], [1], [1], [0], [1]])
    y = bank(rows, Routing(torch.zeros(5, 2), chosen, torch.ones(5, 1)))
    wanted = outputs(weights, "relu", rows)[torch.arange(5), chosen[:, 0]]
    torch.testing.assert_close(y, wanted)
    with pytest.raises(InputError, match="for a bank that has"):
        fill(FeedForwardExperts(2, 4, 2, "relu", bias=True), weights)


def test_bad_sets_masks_and_layers_are_refused() -> None:
    _, dense = plain(3, 8, bias=False)
    with pytest.raises(InputError, match="hidden units 0 to 7"):
        Slices(dense, torch.tensor([[0, 8]]))
    assert sets_of(torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()).tolist() == [[0, 2], [1, 2]]
    with pytest.raises(InputError, match=r"masks keep \[2, 1\] units"):
        sets_of(torch.tensor([[1, 0, 1], [0, 1, 0]]).bool())
    with pytest.raises(InputError, match="is no dense feed-forward layer"):
        dense_layer(decoder_of(tiny_model("Olmoe")), 0)
    with pytest.raises(InputError, match="activation 'tanh'"):
        dense_layer(decoder_of(tiny_model("Llama", hidden_act="tanh")), 0)
