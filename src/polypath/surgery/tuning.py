"""Training what a conversion made: each method's own way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.experts.feedforward import Kind
from polypath.language.families import decoder_of
from polypath.routing import PregatingScorer, losses, routed_layers
from polypath.routing.dispatch import Weights
from polypath.surgery.convert import dense_layers
from polypath.surgery.factorllm import Label, PriorApproximate, gate_balance
from polypath.surgery.readme import distillation_target, overlaps
from polypath.surgery.supervision import distance, supervise

CAREFUL = 0.05
"""The part of the steps in which parameters that ask for care learn slowly."""

After = Callable[[int, float], None]
"""Is told each step and its loss."""


@dataclass(frozen=True)
class Tuning:
    """How long and how fast parameters are trained, by AdamW.

    warmup: steps of a linear rise; then half a cosine down to `floor` of the rate.
    """

    steps: int = 300
    learning_rate: float = 4e-5
    warmup: int = 20
    floor: float = 1e-3
    weight_decay: float = 1e-5
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise InputError(
                f"tuning: steps={self.steps}, learning_rate={self.learning_rate}; "
                "a step at least, and a positive rate"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * (self.floor + (1 - self.floor) * falling)


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    tuning: Tuning,
    after: After | None = None,
    careful: Iterable[nn.Parameter] = (),
) -> None:
    """Train parameters on `loss` of each step; vectors are not decayed.

    careful: those of them that learn at a tenth of the rate in the first twentieth of the steps.
    """
    known, slow = list(parameters), {id(parameter) for parameter in careful}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in known if (p.dim() > 1, id(p) in slow) == (decayed, late)],
            "weight_decay": tuning.weight_decay if decayed else 0.0,
            "late": late,
        }
        for decayed in (True, False)
        for late in (True, False)
    ]
    optimiser = torch.optim.AdamW(
        groups,
        lr=tuning.learning_rate,
        betas=(0.9, 0.95),
    )
    for step in range(tuning.steps):
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(known, tuning.clip)
        for group in optimiser.param_groups:
            early = group["late"] and step < CAREFUL * tuning.steps
            group["lr"] = tuning.rate(step) * (0.1 if early else 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if after is not None:
            after(step, float(value.detach()))


@contextmanager
def training_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block the model trains, and only these parameters want gradients."""
    wanted = {id(parameter) for parameter in parameters}
    before = [(p, p.requires_grad) for p in model.parameters()]
    was = model.training
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    model.train()
    try:
        yield
    finally:
        model.train(was)
        for parameter, one in before:
            parameter.requires_grad_(one)


def next_token(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean cross-entropy of token ids (B, L + 1), in nats."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def teachers_of(model: PreTrainedModel) -> tuple[dict[int, Weights], Kind]:
    """Copies of a dense model's feed-forward weights by layer, and their kind."""
    dense = dense_layers(decoder_of(model))
    kind = next(iter(dense.values())).kind
    return {index: layer.weights() for index, layer in dense.items()}, kind


@dataclass(frozen=True)
class FactorLoss:
    """Weights of FactorLLM's two losses: of the Prior-Approximate one, and of the gates' balance.

    label: see `prior_label`.
    """

    route: float = 0.05
    balance: float = 0.01
    label: Label = "individual"


def tune_factored(
    model: PreTrainedModel,
    teachers: Mapping[int, Weights],
    kind: Kind,
    batches: Iterator[Tensor],
    tuning: Tuning,
    weights: FactorLoss | None = None,
    after: After | None = None,
) -> None:
    """Train a model that `FactorLLM` converted: experts and routers, nothing else.

    teachers: of `teachers_of`, before it was converted. The hard gate passes no gradient of the
    task to a router; the Prior-Approximate loss reaches nothing but routers.
    """
    weights = weights or FactorLoss()
    decoder = decoder_of(model)
    routed = {index: decoder.routed()[index] for index in teachers}
    names = {id(layer): name for name, layer in routed_layers(model).items()}
    layers = {names[id(layer)]: layer for layer in routed.values()}
    known = {names[id(layer)]: teachers[index] for index, layer in routed.items()}
    router: Any = next(iter(routed.values())).router
    teach = PriorApproximate(known, kind, router.selection.k, weights.label)
    parts = [p for layer in layers.values() for p in layer.parameters()]

    def loss(step: int) -> Tensor:
        with supervise(layers, teach) as lessons:
            total = next_token(model, next(batches))
        if weights.route:
            total = (
                total
                + weights.route
                * torch.stack([far.mean() for far in lessons.distances.values()]).sum()
            )
        if weights.balance:
            flat = [gate_balance(layer.last) for layer in layers.values() if layer.last]
            total = total + weights.balance * torch.stack(flat).sum()
        return total

    with training_only(model, parts):
        fit(parts, loss, tuning, after)


def tune_granular(
    model: PreTrainedModel,
    loss: Callable[[int], Tensor],
    tuning: Tuning,
    beside: Iterable[nn.Parameter] = (),
    after: After | None = None,
) -> None:
    """Train a model that `Granular` converted: its routed layers and what is named beside them.

    loss: the task's, of a step. beside: parameters of the head, as the paper unfreezes. Routers
    learn with care, so that slices of a copy stay together at first.
    """
    layers = routed_layers(model)
    routers = [p for layer in layers.values() for p in layer.router.parameters()]
    others = [p for layer in layers.values() for p in layer.experts.parameters()]
    others += [p for p in beside if all(p is not own for own in others)]

    def whole(step: int) -> Tensor:
        return loss(step) + torch.stack([torch.zeros(()), *losses(model).values()]).sum()

    with training_only(model, [*routers, *others]):
        fit([*routers, *others], whole, tuning, after, routers)


@contextmanager
def watching(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """The activations (T, F) of every dense layer's channels in the last forward, by its index."""
    seen: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for index, layer in dense_layers(decoder_of(model)).items():

            def note(module: nn.Module, args: tuple, index: int = index) -> None:
                seen[index] = args[0].detach().flatten(0, -2)

            stack.callback(layer.last.register_forward_pre_hook(note).remove)
        yield seen


@torch.no_grad()
def domain_target(dense: PreTrainedModel, masks: Mapping[int, Tensor], ids: Tensor) -> Tensor:
    """(T, N): which domain's experts have the channels that tokens (B, L) need most, as a softmax.

    Overlaps are averaged over layers. Source: Read-ME, routing distillation.
    """
    with watching(dense) as seen:
        dense(input_ids=ids, use_cache=False)
    return distillation_target([overlaps(seen[index], masks[index]) for index in masks])


def tune_router(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    masks: Mapping[int, Tensor],
    batches: Iterator[Tensor],
    tuning: Tuning,
    after: After | None = None,
) -> None:
    """The router stage of Read-ME: the router ahead of all layers learns what domains overlap.

    dense: the model as it was. KL(router ‖ target); nothing but the router gets a gradient.
    """
    scorer = scorer_of(model)

    def loss(step: int) -> Tensor:
        ids = next(batches)[:, :-1]
        said = scorer.decide(ids).flatten(0, 1).softmax(-1)
        return distance(said, domain_target(dense, masks, ids)).mean()

    parts = list(scorer.parameters())
    with training_only(model, parts):
        fit(parts, loss, tuning, after)


def tune_experts(
    model: PreTrainedModel,
    batches: Iterator[Tensor],
    tuning: Tuning,
    after: After | None = None,
) -> None:
    """The expert stage of Read-ME: everything but the router learns the language."""
    own = {id(p) for p in scorer_of(model).parameters()}
    parts = [p for p in model.parameters() if id(p) not in own]
    with training_only(model, parts):
        fit(parts, lambda step: next_token(model, next(batches)), tuning, after)


def tune_pregated(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    masks: Mapping[int, Tensor],
    batches: Iterator[Tensor],
    tuning: Tuning,
    rounds: int = 4,
    after: After | None = None,
) -> None:
    """Read-ME's alternation: rounds of the router's stage and, twice as long, that of all else.

    tuning: of all rounds together, at the rate of the experts; the router's is ten times that, and
    each round is slower than the one before by 0.8.
    """
    for turn in range(rounds):
        steps = max(1, tuning.steps // (3 * rounds))
        slower = tuning.learning_rate * 0.8**turn
        stage = replace(tuning, steps=steps, learning_rate=10 * slower, warmup=steps // 5)
        tune_router(model, dense, masks, batches, stage, after)
        stage = replace(tuning, steps=2 * steps, learning_rate=slower, warmup=steps // 5)
        tune_experts(model, batches, stage, after)


def scorer_of(model: nn.Module) -> Any:
    """The router that all layers of a model share; raises InputError where there is none."""
    found = next((m for m in model.modules() if isinstance(m, PregatingScorer)), None)
    if found is None:
        raise InputError(f"{type(model).__name__} has no router ahead of its layers")
    return found
