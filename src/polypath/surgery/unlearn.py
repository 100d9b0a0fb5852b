"""Unlearning in one expert: the one that a text engages most, with its layer's router.

Lowers the likelihood of what is to be forgotten; no guarantee that it is gone.
Source: UOE / SEUF, arXiv 2411.18797. Where its code and paper differ: the anchor holds the softmax
over all experts, as the code, and sums over experts, as the paper.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.plain import encode
from polypath.routing.layer import rehearsal
from polypath.surgery.attribution import (
    Affinity,
    Aim,
    Batch,
    Original,
    Scope,
    affinity,
    evaluation,
    named,
    overlap,
    targets,
    trainable,
)
from polypath.surgery.freezing import Trainable, changed, fingerprints
from polypath.surgery.objectives import (
    GA,
    Losses,
    Objective,
    Reduction,
    Step,
    StepLoss,
    look,
    next_token_losses,
)
from polypath.surgery.report import Check, Move, Size, Surgery

Measure = Callable[[nn.Module], float]
"""From a model, in evaluation mode and without gradients, to a number such as an accuracy."""

Ending = Literal["goal reached", "all steps taken", "loss not finite"]


@dataclass(frozen=True)
class Unlearning:
    """How to unlearn.

    objective: what is minimised, see `polypath.surgery.objectives`.
    scope: what is trained, see `trainable`; the anchor goes with "expert" alone.
    targets: layers' names and experts' numbers; None for those of highest affinity.
    count, within_layer: how many of those, and whether from one layer; see `targets`.
    tokens: of the forget batches, of which affinities and overlap are taken; None for all.
    anchor: α, the weight of the anchor. reduction: it sums over experts, or is their mean.
    learning_rate, weight_decay: of AdamW.
    steps: at most so many. goal: stop at this forget efficacy or below, looked at every `every`
        steps; None to take all steps.
    Raises InputError for an unknown name or a number out of range.
    """

    objective: Objective = field(default_factory=GA)
    scope: Scope = "expert"
    targets: Sequence[tuple[str, int]] | None = None
    count: int = 1
    within_layer: bool = True
    tokens: int | None = 100_000
    anchor: float = 1.0
    reduction: Reduction = "sum"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    steps: int = 100
    goal: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("scope", Scope), ("reduction", Reduction)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise unknown(f"{name} of unlearning", value, get_args(kind))
        for name in ("count", "steps", "every"):
            if getattr(self, name) < 1:
                raise InputError(f"unlearning: {name}={getattr(self, name)}; at least 1 is needed")
        if not (0 <= self.anchor < math.inf and 0 < self.learning_rate < math.inf):
            raise InputError(
                f"unlearning: anchor={self.anchor}, learning_rate={self.learning_rate}; 0 or more, "
                "and a positive number, are right"
            )
        if self.targets is not None and not self.targets:
            raise InputError("unlearning: targets is empty; None finds the most engaged expert")


@dataclass(frozen=True)
class Point:
    """A point of the curve of utility against forgetting, after so many steps."""

    step: int
    efficacy: float | None
    utility: float | None


@dataclass(frozen=True)
class Unlearned(Surgery):
    """The report of an unlearning.

    targets: what was aimed at. affinities, affinities_after: by layer, of the forget batches.
    trained: how many numbers. share: of all that the model has. history: every step. curve: every
    measurement, the first before any step. stopped: why. overlap: by layer, how many of the experts
    that things to forget choose were chosen before.
    """

    targets: Sequence[Aim] = ()
    affinities: Mapping[str, Sequence[float]] = field(default_factory=dict)
    affinities_after: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    trained: int = 0
    share: float = 0.0
    history: Sequence[Step] = ()
    curve: Sequence[Point] = ()
    stopped: Ending = "all steps taken"
    overlap: Mapping[str, float] = field(default_factory=dict)


def unlearn(
    model: nn.Module,
    forget: Sequence[Batch],
    retain: Sequence[Batch] = (),
    config: Unlearning | None = None,
    efficacy: Measure | None = None,
    utility: Measure | None = None,
    losses: Losses = next_token_losses,
) -> Unlearned:
    """Make a model forget, in place; it is in evaluation mode meanwhile.

    forget, retain: batches as the model reads them, taken in turn, one of each a step; only what
        the objective reads is needed of the second.
    efficacy: forget efficacy, lower is better. utility: higher is better, only noted.
    losses: of a model on a batch; those of a causal language model by default.
    Auxiliary losses of routers are not in it. A router's parameters that other layers' routers
    have too are not trained. A step whose loss is not finite is not taken, and is the last.
    Raises InputError where there is nothing to train, to read, or to measure a goal with.
    """
    began = time.perf_counter()
    config = config or Unlearning()
    _check(config, forget, retain, efficacy)
    before, size = fingerprints(model), Size.of(model)
    engaged = affinity(model, forget, config.tokens)
    aims = targets(engaged, config.count, config.within_layer)
    if config.targets is not None:
        aims = named(engaged, config.targets)
    parts = trainable(model, config.scope, aims)
    original = Original(model, _touched(parts))
    weight = config.anchor if config.scope == "expert" else 0.0
    loss = StepLoss(
        model,
        {"forget": forget, "retain": retain},
        config.objective,
        partial(look, layer=aims[0].layer, losses=losses),
        original,
        aims,
        weight,
        config.reduction,
    )
    course = _Course(model, config, loss, efficacy, utility)
    with evaluation(model), parts.alone(model):
        stopped = course.run(parts)
    share = parts.count() / size.parameters
    engaged_after = affinity(model, forget, config.tokens)
    name = type(config.objective).__name__
    return Unlearned(
        operation="unlearn",
        settings=encode(config) | {"objective": {"name": name, **encode(config.objective)}},
        before=size,
        after=Size.of(model),
        moves=_moves(config, aims, engaged_after, parts, original),
        checks=[_check_rest(model, before, parts, original)],
        notes=[
            f"{parts.count():,} numbers are trained, {share:.3%} of all",
            f"{len(course.history)} steps were taken; what ended them: {stopped}",
            "Unlearning lowers likelihood; it gives no guarantee that anything is gone.",
        ],
        seconds=time.perf_counter() - began,
        targets=aims,
        affinities={name: values.tolist() for name, values in engaged.items()},
        affinities_after={name: values.tolist() for name, values in engaged_after.items()},
        trained=parts.count(),
        share=share,
        history=course.history,
        curve=course.curve,
        stopped=stopped,
        overlap=overlap(model, original, forget, config.tokens),
    )


def _touched(parts: Trainable) -> list[nn.Parameter]:
    return [*parts.whole, *(cut.parameter for cut in parts.cuts)]


@dataclass(frozen=True, eq=False)
class _Course:
    """The steps of an unlearning, and what is noted on the way."""

    model: nn.Module
    config: Unlearning
    loss: StepLoss
    efficacy: Measure | None
    utility: Measure | None
    history: list[Step] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)

    def run(self, parts: Trainable) -> Ending:
        """Step until the goal, or as often as configured; why it ended."""
        config = self.config
        optimiser = torch.optim.AdamW(
            parts.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        for parameter in _touched(parts):
            parameter.grad = None  # what an earlier backward left would count
        if self._measured(0):
            return "goal reached"
        for taken in range(1, config.steps + 1):
            loss, step = self.loss(taken - 1)
            if not loss.isfinite():
                return "loss not finite"
            loss.backward()
            parts.step(optimiser)
            self.history.append(step)
            looks = taken % config.every == 0 or taken == config.steps
            if looks and self._measured(taken):
                return "goal reached"
        return "all steps taken"

    @torch.no_grad()
    def _measured(self, step: int) -> bool:
        """Note a point of the curve; whether the goal is reached."""
        if self.efficacy is None and self.utility is None:
            return False
        with rehearsal(self.model):
            forgot = None if self.efficacy is None else float(self.efficacy(self.model))
            useful = None if self.utility is None else float(self.utility(self.model))
        self.curve.append(Point(step, forgot, useful))
        return self.config.goal is not None and forgot is not None and forgot <= self.config.goal


def _check(
    config: Unlearning, forget: Sequence[Batch], retain: Sequence[Batch], efficacy: Measure | None
) -> None:
    if not forget:
        raise InputError("unlearning: no batches to forget")
    if {"retain", "retain_before"} & set(config.objective.reads) and not retain:
        raise InputError(
            f"unlearning: {type(config.objective).__name__} reads what is to be retained too; "
            "no batches of it were given"
        )
    if config.goal is not None and efficacy is None:
        raise InputError("unlearning: a goal needs `efficacy`, which measures it")


def _moves(
    config: Unlearning, aims: Sequence[Aim], after: Affinity, parts: Trainable, original: Original
) -> list[Move]:
    """What became of the targets, and how far what was trained has moved."""
    uoe, count = config.scope == "expert", sum(len(values) for values in after.values())
    found = [
        Move(
            f"expert {aim.expert} of {aim.layer}",
            f"affinity {aim.affinity:.3g}, rank {aim.rank} of {count}",
            f"affinity {float(after[aim.layer][aim.expert]):.3g}",
        )
        for aim in (aims if uoe else [])
    ]
    cuts = [(cut.of(original.of(cut.parameter)), cut.of(cut.parameter)) for cut in parts.cuts]
    whole = [(original.of(parameter), parameter.data) for parameter in parts.whole]
    for name, pairs in (
        ("matrices of the targets", cuts),
        ("routers of their layers" if uoe else "what is trained", whole),
    ):
        if pairs:
            far = _length(now - was for was, now in pairs) / _length(was for was, _ in pairs)
            found.append(Move(name, "as trained", f"moved by {far:.2%} of their length"))
    return found


def _length(tensors: Iterable[Tensor]) -> float:
    """The Euclidean length of all together, never 0."""
    squares = [tensor.detach().double().square().sum() for tensor in tensors]
    return max(math.sqrt(float(torch.stack(squares).sum())), 1e-30)


def _check_rest(
    model: nn.Module, before: Mapping[str, str], parts: Trainable, original: Original
) -> Check:
    """How many tensors differ outside of what is trained, stacks of experts among them."""
    touched = {id(parameter) for parameter in _touched(parts)}
    own = {n for n, t in model.state_dict(keep_vars=True).items() if id(t) in touched}
    moved = len(set(changed(dict(before), fingerprints(model))) - own)
    expected = {cut.parameter: original.of(cut.parameter).clone() for cut in parts.cuts}
    for cut in parts.cuts:
        cut.of(expected[cut.parameter]).copy_(cut.of(cut.parameter.detach()))
    moved += sum(not torch.equal(stack, wanted) for stack, wanted in expected.items())
    return Check("tensors that changed and are not trained, their number", float(moved), 0.0)
