from importlib import import_module

import pytest
import torch
from torch.autograd import gradcheck

from dispatches import Shape, assert_equal_results, results
from polypath.errors import InputError
from polypath.experts.activations import ACTIVATIONS, ClampedSwiGLU
from polypath.routing import Routing

STREAM = import_module("polypath.routing.dispatch.stream")
SMALL = Shape(6, 3, 2, 1, 3, 2, "swiglu", True, False, 0.2)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [*ACTIVATIONS, ClampedSwiGLU(limit=0.9)], ids=str)
def test_gradients_are_those_of_finite_differences(kind, transposed):
    shape = Shape(6, 3, 2, 1, 3, 2, kind, True, transposed, 0.2)
    bank, record = shape.bank(), shape.routing()
    bank.engine = "stream"
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def call(x, gates, *parameters):
        del parameters  # the bank's own
        return bank(x, Routing(record.scores, record.experts, gates))

    assert gradcheck(call, (x, record.weights, *bank.parameters()))


@pytest.mark.parametrize("rows", [1, 3, 10, 1000])
def test_results_do_not_depend_on_the_size_of_pieces(monkeypatch, rows):
    shape = Shape(50, 4, 2, 1, 8, 8, "swiglu", True, False, 0.1)
    bank, record = shape.bank(), shape.routing()
    x = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    bank.engine = "reference"
    truth = results(bank, x, record, torch.ones_like(x))
    monkeypatch.setattr(STREAM, "PIECE", 0)
    monkeypatch.setattr(STREAM, "FEWEST", rows)
    bank.engine = "stream"
    assert_equal_results(results(bank, x, record, torch.ones_like(x)), truth, 1e-12)


def test_second_derivatives_are_refused_in_one_line():
    bank, record = SMALL.bank(), SMALL.routing()
    bank.engine = "stream"
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = bank(x, record).square().sum()
    with pytest.raises(InputError, match="engine='reference' has them"):
        torch.autograd.grad(y, x, create_graph=True)
    bank.engine = "reference"
    (grad,) = torch.autograd.grad(bank(x, record).square().sum(), x, create_graph=True)
    grad.sum().backward()
    assert x.grad.abs().sum() > 0


def test_gradients_accumulate_over_calls():
    bank, record = SMALL.bank(), SMALL.routing()
    bank.engine = "stream"
    x = torch.randn(6, 3, dtype=torch.float64)
    for _ in range(2):
        bank(x, record).sum().backward()
    twice = bank.down_proj.grad.clone()
    bank.zero_grad()
    bank(x, record).sum().backward()
    torch.testing.assert_close(twice, 2 * bank.down_proj.grad)


def test_backward_keeps_only_what_the_hidden_layer_was():
    shape = Shape(40, 4, 2, 0, 8, 16, "swiglu", False, False, 0.0)
    bank, record = shape.bank(), shape.routing()
    bank.engine = "stream"
    x = torch.randn(40, 8, dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        bank(x, record)
    known = {t.data_ptr() for t in (x, record.weights, *bank.parameters())}
    new = [t for t in kept if t.data_ptr() not in known]
    assert [tuple(t.shape) for t in new] == [(80, 32)]
