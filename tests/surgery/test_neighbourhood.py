"""Fine-tuning held near its start, against formulas, a plain loss, and what is in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hosts import DENSE, NATIVE, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.routing import RoutingContext, TopKRouter, losses, record, routed_layers
from polypath.surgery.neighbourhood import (
    Deferred,
    Direction,
    NeighbourhoodConstraint,
    Reference,
    at_rest,
    constrained_loss,
    divergence,
    frozen,
)

P, Q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
DIRECTIONS: list[Direction] = ["reverse", "forward"]


def text(rows: int = 3, length: int = 7) -> dict[str, Tensor]:
    """Prompts of two tokens, of which none counts; the last row is shorter."""
    ids = torch.randint(0, 61, (rows, length))
    labels = ids.clone()
    labels[:, :3] = -100
    labels[-1, 5:] = -100
    return {"input_ids": ids, "labels": labels}


def moved(model: Any, size: float = 0.05) -> Any:
    """A copy of a model, somewhere near it."""
    copy = deepcopy(model)
    with torch.no_grad():
        for p in copy.parameters():
            p.add_(size * torch.randn_like(p))
    return copy


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def slope(logits: Tensor, reference: Tensor, direction: Direction) -> Tensor:
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(divergence(z, reference, direction).sum(), z)[0]


class Adapted(nn.Linear):
    """A linear layer beside a product of two thin ones that can be turned off."""

    def __init__(self, width: int, outcomes: int) -> None:
        super().__init__(width, outcomes)
        self.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, width))
        self.up = nn.Parameter(torch.zeros(outcomes, 2))
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + x @ self.down.T @ self.up.T if self.on else y

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


# Property 4: the worked example, and 3: the gradient formula.


def test_the_worked_example() -> None:
    z, first = P.log(), Q.log()
    assert float(divergence(z, first)) == pytest.approx(0.0851, abs=5e-5)
    assert float(divergence(z, first, "forward")) == pytest.approx(0.0920, abs=5e-5)
    wanted = torch.tensor([0.1759, -0.0981, -0.0778])
    torch.testing.assert_close(slope(z, first, "reverse"), wanted, atol=5e-5, rtol=0)
    torch.testing.assert_close(slope(z, first, "forward"), P - Q, atol=1e-6, rtol=0)


@given(st.integers(1, 5), st.integers(2, 9), st.floats(0.1, 6.0))
def test_values_and_gradients_are_those_of_the_formulas(n: int, v: int, scale: float) -> None:
    z, first = (scale * torch.randn(n, v, dtype=torch.float64) for _ in "pq")
    p, q = z.softmax(-1), first.softmax(-1)
    reverse = (p * (p / q).log()).sum(-1)
    forward = F.kl_div(z.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(divergence(z, first), reverse)
    torch.testing.assert_close(divergence(z, first, "forward"), forward.sum(-1))
    found = slope(z, first, "reverse")
    torch.testing.assert_close(found, p * ((p / q).log() - reverse[:, None]))
    torch.testing.assert_close(slope(z, first, "forward"), p - q)
    assert found.sum(-1).abs().max() < 1e-12
    assert torch.autograd.gradcheck(partial(divergence, reference=first), z.requires_grad_())


# Property 2: the start.


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_it_starts_at_zero_with_no_gradient_to_the_bit(direction: Direction) -> None:
    z = 8 * torch.randn(64, 300)
    assert divergence(z, z, direction).abs().max() == 0
    assert slope(z, z, direction).abs().max() == 0
    near = z + 1e-4 * torch.randn_like(z)
    assert divergence(near, z, direction).min() >= 0


def test_the_first_step_is_that_of_plain_fine_tuning() -> None:
    model = tiny_model("Llama")
    batch, start = text(), frozen(model)
    held = constrained_loss(model, start, batch, weight=10.0)
    assert float(held.kl) == 0
    found = gradients(model, held.total)
    for name, plain in gradients(model, model(**batch, use_cache=False).loss).items():
        torch.testing.assert_close(found[name], plain, atol=1e-6, rtol=1e-4)


# Property 1: λ = 0.


@pytest.mark.parametrize("kind", [*DENSE, *NATIVE])
def test_without_weight_it_is_the_model_s_own_masked_loss(kind: str) -> None:
    """Of every family that hosts routed layers, so that its head is the one that is deferred."""
    model = tiny_model(kind)
    batch, other = text(), frozen(moved(model))
    held = constrained_loss(model, other, batch, weight=0.0, chunk=4)
    plain = model(**batch, use_cache=False).loss
    torch.testing.assert_close(held.total, plain)
    assert float(held.kl) > 0
    expected = gradients(model, plain)
    found = gradients(model, held.total)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_without_weight_a_wrapped_task_is_left_as_it_is() -> None:
    model, start = nn.Linear(5, 4), nn.Linear(5, 4)
    x, y = torch.randn(9, 5), torch.randint(4, (9,))
    start.weight.data[0, 0] = torch.inf  # would make anything that is added NaN
    constraint = NeighbourhoodConstraint(lambda z, _: F.cross_entropy(z, y), model, start, weight=0)
    plain = F.cross_entropy(model(x), y)
    assert torch.equal(constraint(x).total, plain)
    expected = gradients(model, plain)
    for name, gradient in gradients(model, constraint(x).total).items():
        assert torch.equal(gradient, expected[name])


# Property 5: λ to infinity.


def test_the_heavier_it_weighs_the_less_a_model_drifts() -> None:
    x, y = torch.randn(60, 8), torch.randint(5, (60,))
    first = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5))
    drift = []
    for weight in (0.0, 0.1, 1.0, 3.0, 1e4):
        model, start = deepcopy(first), frozen(first)
        optimiser = torch.optim.SGD(model.parameters(), 0.3 / (1 + weight))
        constraint = NeighbourhoodConstraint(
            lambda z, _: F.cross_entropy(z, y), model, start, weight=weight
        )
        for _ in range(100):
            optimiser.zero_grad()
            constraint(x).total.backward()
            optimiser.step()
        drift.append(float(constraint(x).kl))
    assert drift == sorted(drift, reverse=True)
    assert drift[0] > 0.1 and drift[-1] < 1e-6


# Property 6: masking.


def test_what_does_not_count_changes_nothing() -> None:
    z, first = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    valid = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    constraint = NeighbourhoodConstraint(
        lambda z, _: z[valid].square().mean(), lambda b: b[0], lambda b: b[1], lambda _: valid
    )
    loss = constraint((z, first))
    spoilt = [torch.where(valid[..., None], x, float("nan")) for x in (z, first)]
    assert torch.equal(constraint(spoilt).total, loss.total)
    each = divergence(z, first)
    torch.testing.assert_close(loss.kl, each[valid].mean())
    assert abs(float(each.mean() - loss.kl)) > 1e-3
    by_sample = (each[0, 1:].mean() + each[1, 3]) / 2
    torch.testing.assert_close(loss.by_sample, by_sample)
    torch.testing.assert_close(loss.total, loss.task + 0.1 * loss.kl)


def test_prompts_are_read_but_not_held() -> None:
    model = tiny_model("Llama")
    batch, start = text(), frozen(moved(model))
    held = constrained_loss(model, start, batch)
    said, wanted = model(batch["input_ids"]).logits, start(batch["input_ids"]).logits
    counts = batch["labels"][:, 1:] != -100
    torch.testing.assert_close(held.kl, divergence(said, wanted)[:, :-1][counts].mean())
    # Two parts of a batch, each divided by the labels of the whole, add up to it.
    parts = [{name: x[rows] for name, x in batch.items()} for rows in ([0], [1, 2])]
    halves = [constrained_loss(model, start, part, items=int(counts.sum())) for part in parts]
    torch.testing.assert_close(halves[0].total + halves[1].total, held.total)
    torch.testing.assert_close(halves[0].kl + halves[1].kl, held.kl)


def test_a_batch_of_prompts_alone_loses_nothing() -> None:
    model = tiny_model("Llama")
    batch = text()
    batch["labels"][:] = -100
    held = constrained_loss(model, frozen(model), batch)
    assert [float(value.detach()) for value in held] == [0, 0, 0, 0]
    assert all(not gradient.any() for gradient in gradients(model, held.total).values())


# Property 7: the reference.


def test_a_copy_is_not_trained_and_knows_no_dropout() -> None:
    model = tiny_model("GPT2", resid_pdrop=0.3, embd_pdrop=0.3).train()
    batch, start = text(), frozen(model)
    start.train()  # as a trainer does that holds it among its modules
    with at_rest(start):
        before = start(batch["input_ids"]).logits
    optimiser = torch.optim.AdamW([*model.parameters(), *start.parameters()], 1e-2)
    torch.manual_seed(1)
    held = constrained_loss(model, start, batch)
    held.total.backward()
    optimiser.step()
    with at_rest(start):
        after = start(batch["input_ids"]).logits
    assert torch.equal(before, after)
    assert all(module.training for module in (*model.modules(), *start.modules()))
    assert float(held.kl) > 0  # of the policy's own dropout, which it keeps
    torch.manual_seed(1)
    assert torch.equal(before, start.eval()(batch["input_ids"]).logits)


def test_the_policy_s_dropout_draws_as_if_there_were_no_reference() -> None:
    model = tiny_model("GPT2", resid_pdrop=0.3).train()
    batch = text()
    torch.manual_seed(2)
    plain = model(**batch, use_cache=False).loss
    torch.manual_seed(2)
    torch.testing.assert_close(constrained_loss(model, frozen(model), batch).task, plain)


@pytest.mark.parametrize("chunk", [None, 3])
def test_adapters_that_are_off_are_the_stored_copy(chunk: int | None) -> None:
    model = tiny_model("Llama").train()
    head = Adapted(16, 61)
    model.set_output_embeddings(head)
    batch, start = text(), frozen(model)
    head.up.data.normal_()
    same = constrained_loss(model, head.off, batch, chunk=chunk)
    copy = constrained_loss(model, start, batch, chunk=chunk)
    assert torch.equal(same.total, copy.total) and float(copy.kl) > 0.1
    found = gradients(model, same.total)
    assert "lm_head.up" in found and "lm_head.weight" not in found
    for name, gradient in gradients(model, copy.total).items():
        assert torch.equal(gradient, found[name])
    assert head.on and model.training and not start.training


def test_routed_layers_remember_the_policy_s_forward() -> None:
    """The reference may be the same network: its forward leaves no loss and counts no load."""
    routed = RoutedLayers(num_experts=4, k=1, hidden=8, bias_rate=0.1)
    model = attach(tiny_model("Llama"), routed).train()
    batch = text()
    alone = deepcopy(model)
    alone(**batch, use_cache=False)
    with record(model) as routes:
        held = constrained_loss(model, Adapted(2, 2).off, batch)
    assert float(held.kl) == 0
    assert {len(forwards) for forwards in routes.values()} == {1}
    torch.testing.assert_close(losses(model), losses(alone))
    for layer, other in zip(*(routed_layers(m).values() for m in (model, alone)), strict=True):
        assert torch.equal(layer.router.selection.bias.seen, other.router.selection.bias.seen)
    before = losses(model)
    with at_rest(model):
        model(batch["input_ids"][:1])
    torch.testing.assert_close(losses(model), before, rtol=0, atol=0)


# Property 8: the neighbourhood is that of the Fisher metric.


@given(st.integers(2, 12))
def test_near_the_start_it_is_quadratic(v: int) -> None:
    z = torch.randn(20, v, dtype=torch.float64)
    step = 1e-4 * torch.randn_like(z)
    p = z.softmax(-1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    half = 0.5 * torch.einsum("nv,nvw,nw->n", step, fisher, step)
    for direction in DIRECTIONS:
        ratio = divergence(z + step, z, direction) / half
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=2e-2, rtol=0)
    start = z[0].clone()
    second = torch.autograd.functional.hessian(lambda x: divergence(x, start), start)
    torch.testing.assert_close(second, fisher[0])


# Property 9: chunks, and half precision.


class Largest(TorchDispatchMode):
    """The most elements that any operation inside the block puts into one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        parts = out if isinstance(out, (tuple, list)) else [out]
        made = [part.numel() for part in parts if isinstance(part, Tensor)]
        self.elements = max([self.elements, *made])
        return out


def kept_bytes(loss: Any) -> tuple[int, Tensor]:
    """How much a graph saves for its gradient, and the loss."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss()
    return sum(sizes.values()), value


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("chunk", [1, 5, 17, 18])
def test_chunks_change_nothing(chunk: int, direction: Direction) -> None:
    model = tiny_model("Gemma2")
    batch, start = text(), frozen(moved(model))
    whole = constrained_loss(model, start, batch, 0.5, direction, chunk=None)
    parts = constrained_loss(model, start, batch, 0.5, direction, chunk=chunk)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    expected = gradients(model, whole.total)
    for name, gradient in gradients(model, parts.total).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_logits_of_a_whole_batch_are_never_there() -> None:
    """Not of one model, forward or backward; and a chunk leaves none of its own behind."""
    n, d, v, chunk = 64, 4, 500, 8
    head, other = nn.Linear(d, v), nn.Linear(d, v)
    features = torch.randn(2, n // 2, d, requires_grad=True)
    constraint = NeighbourhoodConstraint(
        lambda said, _: said.features.sum(),
        lambda x: Deferred(x, head),
        lambda x: Deferred(x, other),
        chunk=chunk,
    )
    with Largest() as seen:
        constraint(features).total.backward()
    assert seen.elements == chunk * v
    at_once = NeighbourhoodConstraint(**vars(constraint) | {"chunk": None})
    with Largest() as seen:
        at_once(features).total.backward()
    assert seen.elements == n * v
    small, _ = kept_bytes(lambda: constraint(features).total)
    large, _ = kept_bytes(lambda: at_once(features).total)
    assert large > 3 * n * v * 4
    # Saved: features and masks. Parameters belong to the model, and are there anyway.
    assert small < 2 * n * d * 4 + (d + 1) * v * 4 + 2000


def test_a_language_model_s_logits_are_never_there() -> None:
    model = tiny_model("Llama", vocab_size=1000)
    batch, start = text(4, 16), frozen(model)
    with Largest() as seen:
        constrained_loss(model, start, batch, chunk=3).total.backward()
    assert seen.elements == 1000 * 16  # the gradient of the embedding
    with Largest() as seen:
        constrained_loss(model, start, batch, chunk=None).total.backward()
    valid = int((batch["labels"][:, 1:] != -100).sum())
    assert seen.elements == 1000 * valid


def test_half_precision_is_summed_in_float32() -> None:
    z, first = 3 * torch.randn(200, 50), 3 * torch.randn(200, 50)
    half = divergence(z.bfloat16(), first.bfloat16())
    assert half.dtype == torch.float32
    exact = divergence(z.bfloat16().double(), first.bfloat16().double())
    assert (half - exact).abs().max() < 1e-4
    model = tiny_model("Llama", initializer_range=0.1)
    batch = text()
    other = frozen(moved(model, 0.02))
    wide = constrained_loss(model, other, batch)
    narrow = constrained_loss(model.bfloat16(), other.bfloat16(), batch)
    assert float((narrow.kl - wide.kl).abs()) < 1e-3
    assert narrow.total.dtype == torch.float32


# Property 10: any task, policy and reference.


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_router_is_held_near_its_first_gate(chunk: int | None) -> None:
    """The task need not be of the gate's logits; experts that may not be chosen do not count."""
    router, x = TopKRouter(8, 6, 2), torch.randn(11, 8)
    may = torch.tensor([True, True, False, True, True, True])
    context = RoutingContext(candidates=may)

    def scores(network: nn.Module, x: Tensor) -> Tensor:
        return network(x, context).scores

    start = frozen(router)
    with torch.no_grad():
        for p in router.parameters():
            p.add_(torch.randn_like(p))
    constraint = NeighbourhoodConstraint(
        lambda z, _: z[:, 0].mean(), partial(scores, router), Reference(start, scores), chunk=chunk
    )
    held = constraint(x)
    gate, first = router(x, context).probabilities, start(x, context).probabilities
    wanted = (gate[:, may] * (gate / first)[:, may].log()).sum(-1).mean()
    torch.testing.assert_close(held.kl, wanted)
    for gradient in gradients(router, held.total).values():
        assert bool(gradient.isfinite().all()) and bool(gradient.any())


def test_scores_of_links_are_held_as_yes_or_no() -> None:
    score, first = torch.randn(30), torch.randn(30)
    yes, was = score.sigmoid(), first.sigmoid()
    wanted = yes * (yes / was).log() + (1 - yes) * ((1 - yes) / (1 - was)).log()
    two = [torch.stack((s, torch.zeros(30)), -1) for s in (score, first)]
    torch.testing.assert_close(divergence(*two), wanted, atol=1e-6, rtol=1e-4)


def test_a_classification_head_is_held_at_every_sample() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3))
    start, x, y = frozen(model), torch.randn(12, 6), torch.randint(3, (12,))
    model.eval()[0].bias.data.add_(0.3)
    constraint = NeighbourhoodConstraint(
        lambda z, batch: F.cross_entropy(z, batch[1]),
        lambda batch: model(batch[0]),
        Reference(start, lambda network, batch: network(batch[0])),
        weight=0.7,
    )
    held = constraint((x, y))
    own, was = model(x).log_softmax(-1), start(x).log_softmax(-1)
    wanted = F.kl_div(was, own, log_target=True, reduction="batchmean")
    torch.testing.assert_close(held.total, F.cross_entropy(model(x), y) + 0.7 * wanted)
    torch.testing.assert_close(held.by_sample, held.kl)


# What is refused.


def test_bad_input_is_refused() -> None:
    def constraint(**values: Any) -> NeighbourhoodConstraint:
        return NeighbourhoodConstraint(lambda z, _: z.sum(), *[lambda z: z] * 2, **values)

    with pytest.raises(InputError, match=r"λ=-1\.0; 0 or more"):
        constraint(weight=-1.0)
    with pytest.raises(InputError, match="λ=nan"):
        constraint(weight=float("nan"))
    with pytest.raises(InputError, match="chunk=0; at least 1"):
        constraint(chunk=0)
    with pytest.raises(InputError, match="direction of the KL 'backward'"):
        constraint(direction="backward")
    with pytest.raises(InputError, match=r"\(2, 3, 4\) do not fit the positions \(2, 4\)"):
        constraint(valid=lambda _: torch.ones(2, 4, dtype=torch.bool))(torch.zeros(2, 3, 4))
    other = NeighbourhoodConstraint(lambda z, _: z.sum(), lambda z: z, lambda z: z[..., 1:])
    with pytest.raises(InputError, match="policy has 4 outcomes, the reference 3"):
        other(torch.zeros(2, 3, 4))


def test_a_head_of_another_kind_is_refused() -> None:
    model = tiny_model("Llama")
    model.config.logits_scaling = 8.0
    with pytest.raises(InputError, match="LlamaForCausalLM is more than a decoder"):
        constrained_loss(model, frozen(model), text())
