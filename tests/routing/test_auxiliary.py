"""Auxiliary losses: equations, limits, padding, and the same numbers however a batch is seen."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import references
from draws import Problem, problems
from polypath.errors import InputError
from polypath.routing import (
    AuxiliaryLoss,
    Entropy,
    HashRouter,
    Importance,
    LoadBalance,
    MoE,
    RouterZ,
    Routing,
    RoutingContext,
    TopKRouter,
    given,
    losses,
    record,
    replay,
    whole_batch,
)
from ranks import batch, losses_of, losses_on, on_ranks, split, without_gradients
from references import assert_same, leaves_of

LOSSES = {
    "load_balance": LoadBalance(1.0),
    "sequence_balance": LoadBalance(1.0, over="sequence"),
    "importance": Importance(1.0),
    "router_z": RouterZ(1.0),
    "entropy": Entropy(1.0),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def slow(name: str, routing: Routing, mask: list[bool], length: int) -> Tensor:
    match name:
        case "load_balance":
            return references.load_balance(routing.probabilities, routing.experts, mask)
        case "sequence_balance":
            return references.sequence_balance(routing.probabilities, routing.experts, mask, length)
        case "importance":
            return references.importance(
                routing.weights, routing.experts, mask, routing.num_experts
            )
        case "router_z":
            return references.router_z(routing.scores, mask)
        case "entropy":
            return references.entropy(routing.probabilities, mask)
    raise AssertionError(name)


@every_loss
@drawn(problem=problems(), gate=st.sampled_from(["softmax", "sigmoid"]), length=st.integers(1, 3))
def test_losses_follow_their_equations(
    problem: Problem, gate: str, length: int, loss: AuxiliaryLoss
) -> None:
    router = TopKRouter(problem.dim, problem.num_experts, problem.k, gate=gate).double()
    length = length if len(problem.x) % length == 0 else 1
    context = problem.context(shape=(len(problem.x) // length, length))
    routing = router(problem.x, context)
    expected = slow(loss.name, routing, problem.counted, length)
    assert_same(loss(routing, context), expected, leaves_of(router, problem.x), 1e-8)


@every_loss
@drawn(problem=problems())
def test_padding_is_as_good_as_removed(problem: Problem, loss: AuxiliaryLoss) -> None:
    router = TopKRouter(problem.dim, problem.num_experts, problem.k).double()
    mask = torch.tensor(problem.counted, dtype=torch.bool)
    padded = RoutingContext(mask=mask, shape=(1, len(mask)))
    shorter = RoutingContext(shape=(1, int(mask.sum())))
    value = loss(router(problem.x, padded), padded)
    expected = loss(router(problem.x[mask], shorter), shorter)
    assert_same(value, expected, leaves_of(router, problem.x))
    assert not references.gradients(value, [problem.x])[0][~mask].any()


@pytest.mark.parametrize("kind", [LoadBalance, Importance, RouterZ, Entropy])
def test_weight_multiplies(kind: type[AuxiliaryLoss]) -> None:
    routing, context = TopKRouter(3, 4, 2)(torch.randn(6, 3)), RoutingContext()
    torch.testing.assert_close(kind(-0.25)(routing, context), -0.25 * kind(1.0)(routing, context))


def routing_of(scores: Tensor, k: int) -> Routing:
    """Top-k routing of scores (T, E), softmax over all."""
    experts = scores.topk(k).indices
    probabilities = scores.softmax(-1)
    return Routing(scores, experts, probabilities.gather(1, experts), probabilities)


def even(num_experts: int, k: int) -> Routing:
    """Each expert chosen as often and as likely: all rotations of one row of scores."""
    row = torch.randn(num_experts, dtype=torch.float64)
    return routing_of(torch.stack([row.roll(i) for i in range(num_experts)]), k)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_even_routing_is_one_for_every_k(k: int) -> None:
    routing, context = even(6, k), RoutingContext(shape=(1, 6))
    value = {name: float(loss(routing, context)) for name, loss in LOSSES.items()}
    assert value["load_balance"] == pytest.approx(1)
    assert value["sequence_balance"] == pytest.approx(1)
    assert value["importance"] == pytest.approx(0)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_collapse_reaches_the_upper_bounds(k: int) -> None:
    """All things choose the same k of E experts, with all the probability."""
    scores = torch.full((5, 8), -60.0, dtype=torch.float64)
    scores[:, :k] = 0.0
    routing, context = routing_of(scores, k), RoutingContext(shape=(1, 5))
    assert float(LOSSES["load_balance"](routing, context)) == pytest.approx(8 / k)
    assert float(LOSSES["sequence_balance"](routing, context)) == pytest.approx(8 / k)
    assert float(LOSSES["importance"](routing, context)) == pytest.approx(8 / k - 1)
    assert float(LOSSES["entropy"](routing, context)) == pytest.approx(math.log(k))
    assert float(LOSSES["router_z"](routing, context)) == pytest.approx(math.log(k) ** 2)


def test_indifference_has_closed_forms() -> None:
    routing = routing_of(torch.full((5, 8), 0.7, dtype=torch.float64), 2)
    context = RoutingContext(shape=(1, 5))
    assert float(LOSSES["load_balance"](routing, context)) == pytest.approx(1)
    assert float(LOSSES["entropy"](routing, context)) == pytest.approx(math.log(8))
    assert float(LOSSES["router_z"](routing, context)) == pytest.approx((0.7 + math.log(8)) ** 2)


@pytest.mark.parametrize("masked", [False, True])
def test_transformers_balance_is_ours_times_k(masked: bool) -> None:
    scores = torch.randn(12, 6)
    mask = torch.rand(12) < 0.6 if masked else None
    theirs = load_balancing_loss_func(
        (scores,), 6, 3, None if mask is None else mask.view(3, 4).long()
    )
    routing = routing_of(scores, 3)
    ours = LoadBalance(1.0)(Routing(**{**routing.__dict__, "mask": mask}), RoutingContext())
    torch.testing.assert_close(3 * ours, theirs)


def test_gradients_survive_experts_without_any_probability() -> None:
    """A closed expert has probability 0, and a far one rounds to it."""
    router = TopKRouter(2, 3, 2, losses=[Entropy(1.0), RouterZ(1.0), LoadBalance(1.0)])
    with torch.no_grad():
        router.scorer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-300.0, -300.0]]))
    for candidates in (None, torch.tensor([True, True, False])):
        x = (torch.rand(4, 2) + 1).requires_grad_()
        routing = router(x, RoutingContext(candidates=candidates))
        assert routing.probabilities[:, 2].eq(0).all()
        sum(routing.losses.values()).backward()
        assert x.grad.isfinite().all()
        assert router.scorer.weight.grad.isfinite().all()


def test_losses_say_what_they_lack() -> None:
    hashed = HashRouter(4)(torch.randn(3, 2), RoutingContext(tokens=torch.arange(3)))
    with pytest.raises(InputError, match="no probabilities"):
        LoadBalance()(hashed, RoutingContext())
    with pytest.raises(InputError, match=r"LoadBalance\(over='sequence'\) needs `shape`"):
        TopKRouter(2, 4, 2, losses=[LoadBalance(over="sequence")])(torch.randn(3, 2))
    with pytest.raises(InputError, match="'batches'; did you mean 'batch'"):
        LoadBalance(over="batches")


# The whole batch, seen in parts


def assert_sums_to(expected: dict[str, Tensor], *parts: dict[str, Tensor]) -> None:
    """Values and gradients add up; biases are moved alike."""
    for name, value in expected.items():
        together = parts[0][name] if "bias" in name else sum(part[name] for part in parts)
        torch.testing.assert_close({name: together}, {name: value}, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return losses_of([batch()], together=False)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 2, 3], [1] * 7])
def test_accumulation_changes_nothing(sizes: list[int], whole: dict[str, Tensor]) -> None:
    assert_sums_to(whole, losses_of(split(sizes), together=True))


def test_accumulation_without_the_whole_batch_would_differ(whole: dict[str, Tensor]) -> None:
    apart = losses_of(split([3, 4]), together=False)
    assert not torch.allclose(apart["load_balance"], whole["load_balance"], rtol=1e-3)


def test_ranks_change_nothing(whole: dict[str, Tensor], tmp_path: Path) -> None:
    """Two processes, each with its part; then with unequal micro-batches in each."""
    ranks = on_ranks(losses_on, 2, tmp_path)

    def of(rank: int, kind: str) -> dict[str, Tensor]:
        found = ranks[rank]
        return {n.removeprefix(kind): v for n, v in found.items() if n.startswith(kind)}

    assert_sums_to(whole, of(0, "alone."), of(1, "alone."))
    assert_sums_to(whole, of(0, "many."), of(1, "many."))
    torch.testing.assert_close(of(0, "own."), without_gradients(split([4, 3])[0]))


class Noisy(nn.Module):
    """A routed layer that draws noise, between two dropouts that draw too."""

    def __init__(self) -> None:
        super().__init__()
        router = TopKRouter(4, 6, 2, "noisy", losses=[LoadBalance(1.0)])
        nn.init.normal_(router.scorer.noise)
        self.layers = nn.Sequential(
            nn.Dropout(0.3), MoE(router, lambda x, routing: x), nn.Dropout(0.3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("own_generator", [False, True])
def test_rehearsal_leaves_the_draws_as_they_were(own_generator: bool) -> None:
    model, parts = Noisy(), [torch.randn(size, 4) for size in (5, 2, 9)]

    def outputs(rehearsed: bool) -> tuple[list[Tensor], list[Tensor], list[Routing]]:
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(6) if own_generator else None

        def run(part: Tensor) -> Tensor:
            with given(generator=generator):
                return model(part)

        passes = [lambda part=part: run(part) for part in parts] if rehearsed else []
        with record(model) as routes, whole_batch(model, passes):
            ys, found = zip(*[(run(p), losses(model)["load_balance"]) for p in parts], strict=True)
        return list(ys), list(found), routes["layers.1"]

    plain, _, _ = outputs(rehearsed=False)
    ys, found, routings = outputs(rehearsed=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, ys, strict=True))
    assert len(routings) == 3, "the rehearsal is not recorded"
    counted = LoadBalance(1.0)(Routing.cat(routings), RoutingContext())
    torch.testing.assert_close(sum(found), counted)


def test_rehearsal_does_not_use_up_a_replay() -> None:
    router = TopKRouter(4, 6, 2, losses=[LoadBalance(1.0)])
    model, parts = MoE(router, lambda x, routing: x), [torch.randn(size, 4) for size in (5, 2)]
    with record(model) as routes:
        for part in parts:
            model(part)
    passes = [lambda part=part: model(part) for part in parts]
    with replay(model, routes, "computed"), whole_batch(model, passes):
        found = []
        for run in passes:
            run()
            found.append(losses(model)["load_balance"])
    counted = LoadBalance(1.0)(routes.joined()[""], RoutingContext())
    torch.testing.assert_close(sum(found), counted)


def test_whole_batch_ends_when_a_pass_fails() -> None:
    router = TopKRouter(4, 6, 2, losses=[LoadBalance(1.0)])
    model, x = MoE(router, lambda x, routing: x), torch.randn(5, 4)
    expected = router(x).losses["load_balance"]

    def fail() -> None:
        model(x)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), whole_batch(model, [fail]):
        raise AssertionError("the block does not run")
    assert model.last is None
    assert model.override is None
    assert torch.equal(router(x).losses["load_balance"], expected)
