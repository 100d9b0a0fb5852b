"""Whether a network runs an algorithm as the algorithm does: its trace, attention and states.

Shapes: T steps, B graphs, N nodes, L layers, H heads, S samples.
Source: Mind The Gap: Deep Learning Doesn't Learn Deeply (arXiv 2505.18623), which names the
measures; the formulas are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.compilation.algorithms import Trace
from polypath.graphs.compilation.batches import GraphBatch
from polypath.graphs.compilation.reasoner import Rollout, decide


@dataclass(frozen=True)
class TraceAccuracy:
    """How far a network follows an algorithm.

    output: nodes whose predecessor is right. hints: by name, what is right of all steps and nodes
    that count; of steps, where a mask is of one node. joint: steps in which all hints of all nodes
    are right. followed: the part of a graph's steps before the first that is not. Without hints the
    last two are None.
    """

    output: float
    hints: Mapping[str, float]
    joint: float | None
    followed: float | None


@torch.no_grad()
def trace_accuracy(
    rollout: Rollout, graphs: GraphBatch, wanted: Trace, tolerance: float = 0.05
) -> TraceAccuracy:
    """Compare predictions with a trace; padding and finished steps do not count.

    tolerance: how far a scalar may be away. Raises InputError for a trace of other steps.
    """
    real, unfinished = graphs.nodes, wanted.unfinished
    if len(rollout.attention) != len(unfinished):
        raise InputError(
            f"trace accuracy: {len(rollout.attention)} steps beside {len(unfinished)} of the trace"
        )
    output = float((rollout.pi == wanted.pi)[real].double().mean())
    counted, hints = unfinished[..., None] & real, {}
    right = torch.ones_like(unfinished)
    for name, raw in rollout.hints.items():
        target = wanted.hints[name][1:]
        predicted = decide(wanted.kinds[name], raw)
        if wanted.kinds[name] == "scalar":
            same = (predicted - target).abs() <= tolerance
        else:
            same = predicted == target
        all_right = (same | ~real).all(-1)
        seen = all_right[unfinished] if wanted.kinds[name] == "mask_one" else same[counted]
        hints[name] = float(seen.double().mean())
        right &= all_right
    if not hints:
        return TraceAccuracy(output, hints, None, None)
    first = (right | ~unfinished).long().cumprod(0).bool() & unfinished
    followed = first.sum(0) / wanted.steps
    return TraceAccuracy(
        output, hints, float(right[unfinished].double().mean()), float(followed.mean())
    )


@dataclass(frozen=True, eq=False)
class Agreement:
    """How alike attentions are: (L, H, H') each, a reference's heads by those of a network.

    overlap: 1 - total variation. credited: the same, where choices that are as good count as one.
    cosine; argmax: rows whose largest entry is at one place, or at a choice that is as good. NaN
    where the reference's head is arbitrary in all rows.
    """

    overlap: Tensor
    credited: Tensor
    cosine: Tensor
    argmax: Tensor

    def best(self, name: str = "overlap") -> float:
        """The mean over the reference's heads of the head that is most alike in that layer."""
        return float(getattr(self, name).amax(-1).nanmean())

    def mean(self, name: str = "overlap") -> float:
        """The mean over all pairs of heads in a layer."""
        return float(getattr(self, name).mean(-1).nanmean())


@torch.no_grad()
def attention_agreement(
    attention: Tensor, reference: Tensor, choices: Tensor, counted: Tensor
) -> Agreement:
    """Compare rows of attention (T, B, L, H', N, N) with those of a reference (T, B, L, H, N, N).

    choices: like the reference, bool: to whom the receiver may attend with the same effect; a row
    without any does not count. counted: (T, B) bool, as `Trace.unfinished`.
    Raises InputError where shapes differ in more than heads.
    """
    shape = reference.shape
    fits = attention.shape[:3] == shape[:3] and attention.shape[4:] == shape[4:]
    if not fits or choices.shape != shape or counted.shape != shape[:2]:
        raise InputError(
            f"agreement: attention {tuple(attention.shape)}, reference {tuple(shape)}, choices "
            f"{tuple(choices.shape)}, counted {tuple(counted.shape)}; (T, B, L, H, N, N), all but "
            "heads the same, and (T, B) are right"
        )
    rows = choices.any(-1) & counted[:, :, None, None, None]
    found: dict[str, list[Tensor]] = {"overlap": [], "credited": [], "cosine": [], "argmax": []}
    wanted = reference.double()
    for head in range(attention.shape[3]):
        own = attention[:, :, :, head : head + 1].double().expand_as(wanted)
        apart = own - wanted
        among = (apart * choices).sum(-1).abs() + (apart * ~choices).abs().sum(-1)
        top = own.argmax(-1, keepdim=True)
        measured = {
            "overlap": 1 - apart.abs().sum(-1) / 2,
            "credited": 1 - among / 2,
            "cosine": torch.cosine_similarity(own, wanted, -1),
            "argmax": choices.gather(-1, top)[..., 0].double(),
        }
        for name, values in measured.items():
            sums = torch.where(rows, values, 0).sum((0, 1, 4))
            found[name].append(sums / rows.sum((0, 1, 4)))  # 0 / 0 is NaN: nothing to compare
    return Agreement(**{name: torch.stack(values, -1) for name, values in found.items()})


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Centred kernel alignment of two sets of states (S, ·) with linear kernels, 0 to 1.

    NaN where one is constant. Source: Kornblith et al. 2019, equation 4.
    """
    if len(x) != len(y):
        raise InputError(f"CKA: {len(x)} samples beside {len(y)}; the same samples are right")
    x, y = (each.double() - each.double().mean(0) for each in (x, y))
    return float((y.mT @ x).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm()))


class Probe(NamedTuple):
    """A linear read-out on samples that it has not seen.

    score: R² of numbers, accuracy of flags. chance: the score of the best constant.
    """

    score: float
    chance: float


def linear_probe(states: Tensor, target: Tensor, train: Tensor) -> Probe:
    """Ridge regression of a register (S,), bool or floating, from states (S, D).

    train: (S,) bool, the samples to fit; the others are tested. Choose them by graph.
    Raises InputError where one part is empty.
    """
    from sklearn.linear_model import Ridge, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not bool(train.any()) or bool(train.all()):
        raise InputError("probe: all samples are on one side; some to fit and some to test")
    flags = target.dtype == torch.bool
    x, y = states.detach().double().numpy(), target.numpy()
    fit, test = train.numpy(), ~train.numpy()
    chance = 0.0
    if flags:
        common = y[fit].mean() >= 0.5
        chance = float((y[test] == common).mean())
        if y[fit].all() or not y[fit].any():
            return Probe(chance, chance)
    model = make_pipeline(StandardScaler(), RidgeClassifier() if flags else Ridge())
    return Probe(float(model.fit(x[fit], y[fit]).score(x[test], y[test])), chance)


def relative_drift(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """‖θ - θ₀‖ / ‖θ₀‖ over all parameters of two state dictionaries of the same names."""
    if now.keys() != start.keys():
        raise InputError("drift: the two states have parameters of different names")
    apart = sum(float((now[name].double() - start[name].double()).square().sum()) for name in now)
    return (apart / sum(float(value.double().square().sum()) for value in start.values())) ** 0.5


class Gaps(NamedTuple):
    """What training leaves open.

    trainability: the compiled network's accuracy less the trained one's. mechanism: the trained
    one's accuracy less the likeness of its attention to the compiled one's.
    """

    trainability: float
    mechanism: float


def gaps(compiled: float, trained: float, agreement: float) -> Gaps:
    """Both gaps, from accuracies and an agreement in 0 … 1."""
    return Gaps(compiled - trained, trained - agreement)
