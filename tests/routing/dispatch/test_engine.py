"""Every engine against every other way, and the choice between them."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dispatches import Shape, assert_equal_results, results, routing, shapes
from polypath.errors import InputError
from polypath.experts.activations import ACTIVATIONS, ClampedSwiGLU
from polypath.routing import dispatch
from polypath.routing.dispatch import Network
from polypath.routing.dispatch.engine import choose
from polypath.routing.dispatch.plan import plan

KINDS = [*ACTIVATIONS, ClampedSwiGLU(limit=0.8)]
HEADLINE = Shape(64, 4, 2, 1, 16, 24, "swiglu", False, False, 0.1)


def compare(shape: Shape, engine: str, dtype: torch.dtype, tolerance: float) -> None:
    """An engine in a dtype against the plain loop in float64, on the same (rounded) numbers."""
    bank, record = shape.bank(dtype), shape.routing(dtype)
    x = torch.randn(shape.things, shape.dim, dtype=dtype, requires_grad=True)
    probe = torch.randn(shape.things, shape.dim, dtype=dtype)
    bank.engine = engine
    found = results(bank, x, record, probe)
    double = shape.bank()
    double.load_state_dict(bank.state_dict())
    double.engine = "reference"
    wide = [t.detach().double().requires_grad_() for t in (x, record.weights)]
    record = dataclasses.replace(record, weights=wide[1])
    truth = results(double, wide[0], record, probe.double())
    assert_equal_results(found, truth, tolerance)


@given(shapes(KINDS))
def test_stream_in_double_precision(shape):
    compare(shape, "stream", torch.float64, 1e-12)


@given(shapes(KINDS))
def test_stream_in_single_precision(shape):
    compare(shape, "stream", torch.float32, 2e-5)


@given(shapes(KINDS))
def test_grouped_in_single_precision(shape):
    compare(shape, "grouped", torch.float32, 2e-5)


@given(shapes(KINDS), st.sampled_from(["reference", "stream", "grouped"]))
def test_half_precision(shape, engine):
    compare(shape, engine, torch.bfloat16, 5e-2)


@pytest.mark.parametrize("engine", ["reference", "stream", "grouped"])
@pytest.mark.parametrize("transposed", [False, True])
def test_results_do_not_depend_on_strides(engine, transposed):
    shape = dataclasses.replace(HEADLINE, transposed=transposed, bias=True)
    bank, record = shape.bank(torch.float32), shape.routing(torch.float32)
    bank.engine = engine
    x, probe = torch.randn(2, shape.things, shape.dim)
    truth = results(bank, x.clone().requires_grad_(), record, probe)
    column_major = x.T.contiguous().T.requires_grad_()
    found = results(bank, column_major, record, probe.T.contiguous().T)
    assert_equal_results(found, truth, 1e-6)
    for parameter in bank.parameters():  # every other number of a larger tensor
        parameter.data = parameter.data.repeat_interleave(2, -1)[..., ::2]
    assert_equal_results(results(bank, column_major, record, probe), truth, 1e-6)


@pytest.mark.parametrize("engine", ["reference", "stream", "grouped"])
def test_gradient_of_a_plain_sum(engine):
    bank, record = HEADLINE.bank(torch.float32), HEADLINE.routing(torch.float32)
    bank.engine = engine
    x = torch.randn(HEADLINE.things, HEADLINE.dim, requires_grad=True)
    truth = results(bank, x, record, torch.ones_like(x))
    bank(x, record).sum().backward()  # its gradient is expanded: all strides are zero
    found = {"x": x.grad, "gates": record.weights.grad}
    found |= {name: p.grad for name, p in bank.named_parameters()}
    assert_equal_results({"y": truth["y"]} | found, truth, 1e-6)


@pytest.mark.parametrize("engine", ["reference", "stream", "grouped"])
@pytest.mark.parametrize("frozen", list(itertools.product([False, True], repeat=3)), ids=str)
def test_frozen_parts_get_no_gradient_and_change_no_other(engine, frozen):
    bank, record = HEADLINE.bank(torch.float32), HEADLINE.routing(torch.float32)
    bank.engine = engine
    x, probe = torch.randn(2, HEADLINE.things, HEADLINE.dim)
    x.requires_grad_()
    truth = results(bank, x, record, probe)
    leaves = {"x": x, "gate_up_proj": bank.gate_up_proj, "gates": record.weights}
    for (name, leaf), freeze in zip(leaves.items(), frozen, strict=True):
        leaf.requires_grad_(not freeze)
        if freeze:
            del truth[name]
    assert_equal_results(results(bank, x, record, probe), truth, 1e-6)


@pytest.mark.parametrize("engine", ["reference", "stream", "grouped"])
def test_inference_gives_the_same_and_keeps_nothing(engine):
    bank, record = HEADLINE.bank(torch.float32), HEADLINE.routing(torch.float32)
    bank.engine = engine
    x = torch.randn(HEADLINE.things, HEADLINE.dim)
    y = bank(x, record)
    with torch.inference_mode():
        torch.testing.assert_close(bank(x, record), y.detach(), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert bank(x, record).grad_fn is None


@pytest.mark.parametrize("engine", ["reference", "stream", "grouped"])
def test_autocast_computes_in_half_and_returns_the_dtype_of_x(engine):
    bank, record = HEADLINE.bank(torch.float32), HEADLINE.routing(torch.float32)
    x, probe = torch.randn(2, HEADLINE.things, HEADLINE.dim)
    x.requires_grad_()
    truth = results(bank, x, record, probe)
    bank.engine = engine
    with torch.autocast("cpu", torch.bfloat16):
        found = results(bank, x, record, probe)
    assert {t.dtype for t in found.values()} == {torch.float32}
    assert_equal_results(found, truth, 5e-2)
    assert not torch.allclose(found["y"], truth["y"], rtol=1e-5)


@pytest.mark.parametrize("engine", ["reference", "stream", "grouped"])
def test_single_precision_gates_beside_half_precision_rows(engine):
    bank, record = HEADLINE.bank(torch.bfloat16), HEADLINE.routing(torch.float32)
    bank.engine = engine
    x = torch.randn(HEADLINE.things, HEADLINE.dim, dtype=torch.bfloat16, requires_grad=True)
    found = results(bank, x, record, torch.ones_like(x))
    assert found["y"].dtype == torch.bfloat16
    assert found["gates"].dtype == torch.float32
    bank.engine, bank = "reference", bank.double()
    record = dataclasses.replace(record, weights=record.weights.detach().double().requires_grad_())
    wide = x.detach().double().requires_grad_()
    assert_equal_results(found, results(bank, wide, record, torch.ones_like(wide)), 5e-2)


class LowRank(Network):
    """A network that has only its equation: x + B A x, with a matrix that all experts share."""

    def equation(self, rows, weights, linear):
        down, up, offset = weights
        return rows + torch.tanh(linear(linear(rows, down, None), up, offset))


@pytest.mark.parametrize("engine", ["stream", "grouped"])
@pytest.mark.parametrize("things", [0, 1, 40])
def test_networks_with_an_equation_alone(engine, things):
    down, up = torch.randn(5, 4, 8, requires_grad=True), torch.randn(5, 8, 4, requires_grad=True)
    offset = torch.randn(5, 8, requires_grad=True)
    x, record = torch.randn(things, 8, requires_grad=True), routing(things, 5, 2, idle=1)
    weights, probe = (down, up, offset), torch.randn(things, 8)
    leaves = [x, record.weights, *weights]
    record.weights.data = record.weights.data.float()

    def run(name):
        y = dispatch(x, record, LowRank(), weights, name)
        if not y.requires_grad:
            return [y, *map(torch.zeros_like, leaves)]
        return [y, *torch.autograd.grad(y, leaves, probe, materialize_grads=True)]

    for found, truth in zip(run(engine), run("reference"), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


class Alone(Network):
    grouped = False


@dataclasses.dataclass
class OnGPU:
    dtype: torch.dtype = torch.float32
    is_cuda: bool = True


@pytest.mark.parametrize(
    ("x", "network", "things", "size", "engine"),
    [
        (torch.zeros(1), Network(), 40_000, 10_000, "stream"),
        (torch.zeros(1), Network(), 10, 10_000, "grouped"),
        (torch.zeros(1), Network(), 1, 10_000_000, "stream"),  # its gradient is large
        (torch.zeros(1), Alone(), 10, 10_000, "stream"),
        (torch.zeros(1, dtype=torch.bfloat16), Network(), 40_000, 10_000, "stream"),
        (torch.zeros(1, dtype=torch.float64), Network(), 10, 10_000, "reference"),
        (OnGPU(), Network(), 40_000, 10_000, "grouped"),
        (OnGPU(), Alone(), 40_000, 10_000, "stream"),
    ],
)
def test_the_choice(x, network, things, size, engine):
    order = plan(torch.zeros(things, 1, dtype=torch.int64), 2)
    weights = torch.empty(2, size, requires_grad=True), None
    assert choose(x, order, network, weights) == engine


def test_large_weights_are_no_matter_without_gradients():
    order = plan(torch.zeros(1, 1, dtype=torch.int64), 2)
    weights = [torch.empty(2, 10_000_000, requires_grad=True)]
    with torch.no_grad():
        assert choose(torch.zeros(1), order, Network(), weights) == "grouped"
    assert choose(torch.zeros(1), order, Network(), [weights[0].detach()]) == "grouped"


def test_the_environment_overrides_the_choice_and_an_argument_both(monkeypatch):
    bank, record = HEADLINE.bank(torch.float32), HEADLINE.routing(torch.float32)
    x = torch.randn(HEADLINE.things, HEADLINE.dim)
    monkeypatch.setenv("POLYPATH_ENGINE", "streem")
    with pytest.raises(InputError, match="unknown dispatch engine 'streem'; did you mean 'stream'"):
        bank(x, record)
    bank.engine = "reference"
    assert bank(x, record).grad_fn.name().startswith("IndexAdd")
    monkeypatch.setenv("POLYPATH_ENGINE", "reference")
    bank.engine = None
    assert bank(x, record).grad_fn.name().startswith("IndexAdd")


def test_slots_without_expert_do_nothing_whatever_they_weigh():
    bank, record = HEADLINE.bank(), HEADLINE.routing()
    x = torch.randn(HEADLINE.things, HEADLINE.dim, dtype=torch.float64)
    y = bank(x, record)
    loud = record.weights.detach().masked_fill(record.experts < 0, torch.nan)
    for engine in ("reference", "stream"):
        bank.engine = engine
        torch.testing.assert_close(bank(x, dataclasses.replace(record, weights=loud)), y)
