"""What the gate of one layer says about that of another, thing by thing.

Source: Layerwise Recurrent Router for Mixture-of-Experts (RMoE), arXiv 2408.06793, appendix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.diagnosis.specialisation import Specialisation
from polypath.errors import InputError
from polypath.routing import Routing

BINS = 100


def gate_information(
    above: Routing, below: Routing, generator: torch.Generator, bins: int = BINS
) -> Specialisation:
    """Mutual information, in nats, of a thing's two gate vectors, and that with another thing's.

    The E experts of a thing count as E samples of (its gate above, its gate below), each in one of
    `bins` equal bins of 0..1; the mean over the things that count. Flat gates alone raise the
    number, so compare it less the control: what a thing's gates above say of another thing's below.
    Raises InputError when the routings differ in things or experts, or have no probabilities.
    """
    one, other = _gates(above), _gates(below)
    if one.shape != other.shape:
        raise InputError(
            f"gate information: {tuple(one.shape)} things and experts above, "
            f"{tuple(other.shape)} below; the same are needed"
        )
    order = torch.randperm(len(other), generator=generator).to(other.device)
    return Specialisation(_information(one, other, bins), _information(one, other[order], bins))


def _gates(routing: Routing) -> Tensor:
    """(T, E) probabilities of the things that count, each row scaled to sum to one."""
    if routing.probabilities is None:
        raise InputError("gate information: this routing has no probabilities; its router has none")
    gates = routing.probabilities.double()
    gates = gates / gates.sum(-1, keepdim=True).clamp_min(1e-300)
    return gates if routing.mask is None else gates[routing.mask]


def _information(one: Tensor, other: Tensor, bins: int) -> float:
    total = 0.0
    for a, b in zip(one.split(1024), other.split(1024), strict=True):
        same_a, same_b = (_together(gates, bins) for gates in (a, b))
        counts = [same.sum(-1, dtype=torch.float64) for same in (same_a & same_b, same_a, same_b)]
        # Over the samples n of a thing: log of p(bins) / (p(bin above) p(bin below)).
        ratio = a.shape[1] * counts[0] / (counts[1] * counts[2])
        total += float(ratio.log().mean(-1).sum())
    return total / max(1, len(one))


def _together(gates: Tensor, bins: int) -> Tensor:
    """(T, E, E) bool: which experts of a thing fall into one bin."""
    places = (gates * bins).long().clamp_max(bins - 1)
    return places[:, :, None] == places[:, None, :]


class Balance(NamedTuple):
    """How a gate shares out a thing, medians over things.

    inner: the highest over the second highest gate of those chosen. outer: what the chosen experts
    have of the whole gate.
    """

    inner: float
    outer: float


def balance(routing: Routing) -> Balance:
    """Inner and outer balance of a layer; inner is NaN where things have one expert.

    Raises InputError when the routing has no probabilities.
    """
    gates = _gates(routing)
    experts = routing.experts if routing.mask is None else routing.experts[routing.mask]
    chosen = gates.gather(1, experts.clamp_min(0)).masked_fill(experts < 0, 0.0)
    best = chosen.topk(min(2, chosen.shape[1]), dim=1).values
    inner = (
        best[:, 0] / best[:, 1] if best.shape[1] == 2 else torch.full_like(best[:, 0], torch.nan)
    )
    return Balance(float(inner.median()), float(chosen.sum(-1).median()))


@torch.no_grad()
def expert_similarity(experts: nn.Module) -> float:
    """The mean cosine of all pairs of a bank's experts, itself among them.

    An expert is the means of its weight matrices over its inner units, each scaled to length one,
    one after another, divided by their number; 1 when all are alike, 1 / E when all are orthogonal.
    experts: a bank with `weights()`, stacked (E, out, in): (…F, D) and then (D, F).
    """
    w_in, _, w_out, _ = experts.weights()  # type: ignore[operator]
    means = [w_out.double().mean(2)]
    hidden = w_out.shape[2]
    # Gated kinds have two matrices in one; their units lie side by side or one after another.
    parts = w_in.double().unflatten(1, (-1, hidden)) if w_in.shape[1] > hidden else w_in[:, None]
    means += [part.double().mean(1) for part in parts.unbind(1)]
    vectors = torch.cat([F.normalize(mean, dim=1) for mean in means], 1)
    return float((vectors @ vectors.T / len(means)).mean())
