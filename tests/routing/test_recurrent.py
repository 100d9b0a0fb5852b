"""Recurrent routers: the cell's equations, worked numbers, counts, gradients, and controls."""

from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.language import RoutedLayers, build_stack
from polypath.routing import (
    CosineScorer,
    MoE,
    RecurrentRouter,
    RecurrentScorer,
    Router,
    RoutingContext,
    SoftmaxGate,
    TopK,
    TopKRouter,
    given,
)

PASSING = ["on", "off", "detached"]


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + (-value).exp())


def gru(cell: nn.GRUCell, low: Tensor, before: Tensor) -> Tensor:
    """Equations 2 and 3 as they read, with the biases and the U_n of the authors' code."""
    w_s, w_z, w_n = cell.weight_ih.chunk(3)
    u_s, u_z, u_n = cell.weight_hh.chunk(3)
    b_s, b_z, b_n = cell.bias_ih.chunk(3)
    c_s, c_z, c_n = cell.bias_hh.chunk(3)
    rows = []
    for x, h in zip(low, before, strict=True):
        s = sigmoid(w_s @ x + b_s + u_s @ h + c_s)
        z = sigmoid(w_z @ x + b_z + u_z @ h + c_z)
        new = (w_n @ x + b_n + s * (u_n @ h + c_n)).tanh()
        rows.append((1 - z) * new + z * h)
    return torch.stack(rows) if rows else before


def stacked(routers: list[Any], inputs: list[Tensor]) -> list[Any]:
    """The routings of layers above each other, each given its own things."""
    routings: list[Any] = []
    for router, x in zip(routers, inputs, strict=True):
        previous = routings[-1] if routings else None
        routings.append(router(x, RoutingContext(previous=previous)))
    return routings


def routers(count: int, passing: str = "on", dim: int = 4, **options: Any) -> list[RecurrentRouter]:
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 3).double()
    return [
        RecurrentRouter(dim, 5, 2, cell, passing=passing, **options).double() for _ in range(count)
    ]


@drawn(st.integers(0, 5), st.integers(1, 5), st.integers(1, 4), st.sampled_from(PASSING))
def test_scores_follow_the_equations(things: int, dim: int, width: int, passing: str) -> None:
    cell = nn.GRUCell(width, width).double()
    layers = [RecurrentScorer(dim, 5, cell, passing=passing).double() for _ in range(3)]
    inputs = [torch.randn(things, dim, dtype=torch.float64) for _ in layers]
    found = stacked([Router(s, TopK(2), SoftmaxGate()) for s in layers], inputs)
    state = torch.zeros(things, width, dtype=torch.float64)
    for scorer, x, routing in zip(layers, inputs, found, strict=True):
        before = torch.zeros_like(state) if passing == "off" else state
        state = gru(cell, x @ scorer.projection.weight.T, before)
        torch.testing.assert_close(routing.state, state)
        torch.testing.assert_close(routing.scores, state @ scorer.head.weight.T)


def test_worked_numbers_of_a_scalar_cell() -> None:
    cell = nn.GRUCell(1, 1)
    for name, parameter in cell.named_parameters():
        parameter.data.fill_(0.0 if "bias" in name else 1.0)
    scorer = RecurrentScorer(1, 1, cell)
    scorer.projection.weight.data.fill_(1.0)
    scorer.head.weight.data.fill_(1.0)

    def state(x: float, before: Tensor | None, passing: str = "on") -> Tensor:
        scorer.passing = passing
        previous = None
        if before is not None:
            previous = TopKRouter(1, 1, 1)(torch.zeros(1, 1))
            object.__setattr__(previous, "state", before)
        return scorer(torch.tensor([[x]]), RoutingContext(previous=previous))[1]

    first = state(0.5, None)
    assert first.item() == pytest.approx(0.174468, abs=1e-6)
    assert state(-0.25, first).item() == pytest.approx(-0.001439, abs=1e-6)
    assert state(-0.25, first, "off").item() == pytest.approx(-0.137688, abs=1e-6)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell])
def test_other_cells_are_the_librarys(kind: type[Any]) -> None:
    cell = kind(3, 3)
    layers = [RecurrentRouter(4, 5, 2, cell) for _ in range(2)]
    inputs = [torch.randn(6, 4) for _ in layers]
    found = stacked(layers, inputs)
    state = None
    for router, x, routing in zip(layers, inputs, found, strict=True):
        low = router.scorer.projection(x)
        state = cell(low) if state is None else cell(low, state)
        hidden = state[0] if kind is nn.LSTMCell else state
        torch.testing.assert_close(routing.scores, router.scorer.head(hidden, RoutingContext()))


@pytest.mark.parametrize(
    ("layers", "dim", "experts", "linear", "recurrent"),
    [(8, 352, 16, 45_056, 475_904), (24, 1280, 16, 491_520, 491_520 + 3_588_864)],
)
def test_published_parameter_counts(
    layers: int, dim: int, experts: int, linear: int, recurrent: int
) -> None:
    def counted(router: str, **values: Any) -> int:
        routed = RoutedLayers(router, num_experts=experts, hidden=1, losses={}, **values)
        stack = nn.ModuleList(build_stack(routed, dim, 1, layers))
        return sum(p.numel() for n, p in stack.named_parameters() if ".router." in n)

    assert counted("top-k") == linear
    assert counted("recurrent", options={"state": 128}) == recurrent


def test_the_state_goes_up_the_layers_not_along_the_text() -> None:
    layers = routers(3)
    inputs = [torch.randn(7, 4, dtype=torch.float64) for _ in layers]
    order = torch.randperm(7)
    found = stacked(layers, inputs)
    moved = stacked(layers, [x[order] for x in inputs])
    for ours, theirs in zip(moved, found, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores[order])
    changed = [torch.cat([x[:6], torch.randn(1, 4, dtype=torch.float64)]) for x in inputs]
    for ours, theirs in zip(stacked(layers, changed), found, strict=True):
        torch.testing.assert_close(ours.scores[:6], theirs.scores[:6])


@pytest.mark.parametrize("passing", PASSING)
def test_gradients_go_down_where_the_state_is_passed_on(passing: str) -> None:
    layers = routers(3, passing)
    inputs = [torch.randn(7, 4, dtype=torch.float64) for _ in layers]
    stacked(layers, inputs)[-1].scores.square().sum().backward()
    for router in layers[:2]:
        reached = router.scorer.projection.weight.grad
        assert (reached is not None and bool(reached.any())) == (passing == "on")
    assert layers[2].scorer.projection.weight.grad.any()


def test_detaching_changes_no_value_and_not_passing_forgets_what_was_below() -> None:
    inputs = [torch.randn(7, 4, dtype=torch.float64) for _ in range(3)]
    on, detached, off = (
        stacked(routers(3, passing), inputs)[-1] for passing in ("on", "detached", "off")
    )
    assert torch.equal(detached.scores, on.scores)
    others = [torch.randn(7, 4, dtype=torch.float64) for _ in range(2)]
    again = stacked(routers(3, "off"), [*others, inputs[2]])[-1]
    assert torch.equal(again.scores, off.scores)
    assert not torch.equal(stacked(routers(3), [*others, inputs[2]])[-1].scores, on.scores)


def test_limits_of_the_update_gate() -> None:
    inputs = [torch.randn(7, 4, dtype=torch.float64) for _ in range(2)]
    frozen, fresh = routers(2), routers(2)
    for layers, bias in ((frozen, 1e3), (fresh, -1e3)):
        layers[0].scorer.cell.bias_ih.data.chunk(3)[1].fill_(bias)
    for routing in stacked(frozen, inputs):
        assert not routing.state.any()
        torch.testing.assert_close(routing.probabilities, torch.full_like(routing.scores, 1 / 5))
    cell = fresh[0].scorer.cell
    w_n, b_n, c_n = (p.chunk(3)[2] for p in (cell.weight_ih, cell.bias_ih, cell.bias_hh))
    first = stacked(fresh, inputs)[0]
    low = inputs[0] @ fresh[0].scorer.projection.weight.T
    s = sigmoid(low @ cell.weight_ih.chunk(3)[0].T + (cell.bias_ih + cell.bias_hh).chunk(3)[0])
    torch.testing.assert_close(first.state, (low @ w_n.T + b_n + s * c_n).tanh())


def test_weights_add_up_and_states_are_bounded() -> None:
    for routing in stacked(routers(4), [10 * torch.randn(9, 4).double() for _ in range(4)]):
        torch.testing.assert_close(routing.weights.sum(-1), torch.ones(9).double())
        assert routing.state.abs().max() <= 1


def test_experts_see_the_things_themselves() -> None:
    bank = FeedForwardExperts(5, 4, 6).double()
    (router,) = routers(1)
    x = torch.randn(9, 4, dtype=torch.float64)
    recurrent, plain = MoE(router, bank), MoE(TopKRouter(4, 5, 2).double(), bank)
    routing = router(x)
    recurrent.override = plain.override = lambda layer, rows, context: routing
    assert torch.equal(recurrent(x), plain(x))


def test_residual_scores_of_the_layer_below() -> None:
    inputs = [torch.randn(7, 4, dtype=torch.float64) for _ in range(2)]
    plain = stacked(routers(2, "off"), inputs)
    for detached in (False, True):
        layers = routers(2, "off", residual=0.5, residual_detached=detached)
        found = stacked(layers, inputs)
        torch.testing.assert_close(found[1].scores, plain[1].scores + 0.5 * plain[0].scores)
        found[1].scores.sum().backward()
        assert (layers[0].scorer.projection.weight.grad is None) == detached


def test_cosine_scoring_of_the_state() -> None:
    (router,) = routers(1, head=CosineScorer(3, 5))
    x = torch.randn(7, 4, dtype=torch.float64)
    routing = router(x)
    low = F.normalize(routing.state @ router.scorer.head.projection.T, dim=-1)
    rows = F.normalize(router.scorer.head.weight, dim=-1)
    expected = low @ rows.T / router.scorer.head.log_temperature.exp()
    torch.testing.assert_close(routing.scores, expected)


def test_a_stack_shares_its_cell_and_what_it_is_told_to() -> None:
    options = {"state": 6, "shared_projection": True}
    one, other = build_stack(RoutedLayers("recurrent", options=options), 4, 3, 2)
    assert one.router.scorer.cell is other.router.scorer.cell
    assert one.router.scorer.projection is other.router.scorer.projection
    (apart,) = build_stack(RoutedLayers("recurrent", options={"state": 6}), 4, 3, 1)
    assert apart.router.scorer.cell is not one.router.scorer.cell


def test_a_layer_without_a_state_between_starts_anew() -> None:
    (router,) = routers(1)
    x = torch.randn(5, 4, dtype=torch.float64)
    below = TopKRouter(4, 5, 2).double()(x)
    assert torch.equal(router(x, RoutingContext(previous=below)).scores, router(x).scores)


def test_half_precision_routes_as_single_does() -> None:
    cell = nn.GRUCell(3, 3)
    half = RecurrentRouter(4, 5, 2, cell).bfloat16()
    x = torch.randn(20, 4).bfloat16()
    found = half(x)
    assert found.state.dtype == found.scores.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half(x).scores, found.scores)
    assert torch.equal(half.float()(x.float()).experts, found.experts)


def test_the_ambient_context_carries_the_layer_below() -> None:
    first, second = routers(2)
    x = torch.randn(5, 4, dtype=torch.float64)
    layer = MoE(second, FeedForwardExperts(5, 4, 3).double())
    with given(previous=first(x)):
        layer(x)
    assert torch.equal(layer.last.scores, stacked([first, second], [x, x])[1].scores)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: RecurrentScorer(4, 5, nn.GRUCell(3, 4)), "not a GRU, RNN or LSTM cell"),
        (lambda: RecurrentScorer(4, 5, nn.GRUCell(3, 3, bias=False)), "with biases from p to p"),
        (lambda: RecurrentScorer(4, 5, nn.GRUCell(3, 3), passing="onn"), "did you mean 'on'"),
        (lambda: RecurrentRouter(4, 5, 6, nn.GRUCell(3, 3)), "k=6 of 5 experts"),
        (lambda: RoutedLayers("recurrent", options={"state": 0}), "state=0; at least 1"),
        (lambda: RoutedLayers("recurrent", options={"stat": 5}), "did you mean 'state'"),
        (lambda: RoutedLayers("recurrent", options={"cell": "gruu"}), "did you mean 'gru'"),
        (lambda: RoutedLayers("top-k", options={"state": 5}), "a 'top-k' router has none"),
    ],
)
def test_wrong_values_get_one_line(make: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert line in str(caught.value) and "\n" not in str(caught.value)
