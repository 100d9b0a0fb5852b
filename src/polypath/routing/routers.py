"""Routers: named compositions of a scorer, a selection and a gate.

Compose your own with `Router(scorer, selection, gate)`; the classes below are the published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.routing.auxiliary import AuxiliaryLoss
from polypath.routing.candidates import Candidates
from polypath.routing.context import RoutingContext
from polypath.routing.gates import Gate, HardGate, SigmoidGate, SoftmaxGate, UniformGate
from polypath.routing.record import Routing
from polypath.routing.scorers import (
    CosineScorer,
    HashScorer,
    LinearScorer,
    MLPScorer,
    NoisyLinearScorer,
)
from polypath.routing.selection import All, ExpertChoice, SelectionBias, TopK, within_capacity

SCORERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearScorer,
    "affine": partial(LinearScorer, bias=True),
    "cosine": CosineScorer,
    "mlp": MLPScorer,
    "noisy": NoisyLinearScorer,
}


class Router(nn.Module):
    """Decides which experts serve each thing: x (T, D) and a context to a Routing.

    scorer: x, context to scores (T, E); or to scores and a state (T, ...) that the router of the
        next layer may read as `context.previous.state`.
    selection: scores, probabilities, context to experts (T, K); it is given the scores in the place
        of probabilities where the gate has none.
    gate: scores to probabilities (T, E) or None, and both with experts to weights (T, K).
    losses: auxiliary losses of this layer's routing, on its choices before any are dropped. The
        router keeps copies, for each layer counts for itself.
    candidates: context to the experts that may be chosen in this step, (E,) or (T, E) bool, or None
        for all; see `polypath.routing.candidates`.
    capacity: an expert serves at most ⌈capacity · T · K / E⌉ things and drops the rest; None for no
        limit. Padding then is not served.
    Everything is computed outside of autocast, so that choices do not depend on it.
    Raises InputError when capacity is not positive or two losses have one name.
    """

    def __init__(
        self,
        scorer: nn.Module,
        selection: nn.Module,
        gate: Gate,
        losses: Iterable[AuxiliaryLoss] = (),
        capacity: float | None = None,
        candidates: Candidates | None = None,
    ) -> None:
        super().__init__()
        if capacity is not None and capacity <= 0:
            raise InputError(f"router: capacity={capacity}; it must be positive, or None")
        self.scorer = scorer
        self.selection = selection
        self.gate = gate
        self.candidates = candidates
        self.losses = nn.ModuleDict()
        self.capacity = capacity
        for loss in losses:
            if loss.name in self.losses:
                raise InputError(f"router: two losses are named {loss.name!r}; one would be lost")
            self.losses[loss.name] = deepcopy(loss)

    def forward(self, x: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route x (T, D). Raises InputError where the context lacks or misfits what is needed."""
        context = context or RoutingContext()
        if not torch.is_autocast_enabled(x.device.type):
            return self._route(x, context)
        with torch.autocast(x.device.type, enabled=False):
            return self._route(x, context)

    def _route(self, x: Tensor, context: RoutingContext) -> Routing:
        scored = self.scorer(x, context)
        scores, state = scored if isinstance(scored, tuple) else (scored, None)
        context.check(len(x), scores.shape[1])
        scores, probabilities = self._open(scores, context)
        experts = context.experts
        if experts is None:
            ranked = scores if probabilities is None else probabilities
            experts = self.selection(scores, ranked, context)
        weights = self.gate.weights(scores, probabilities, experts)
        routing = Routing(scores, experts, weights, probabilities, context.mask, state=state)
        if not self.losses and self.capacity is None:
            return routing
        losses = {name: loss(routing, context) for name, loss in self.losses.items()}
        if self.capacity is not None:
            experts = within_capacity(experts, scores.shape[1], self.capacity, context.mask)
            weights = weights.masked_fill(experts < 0, 0.0)
        return replace(routing, experts=experts, weights=weights, losses=losses)

    def _open(self, scores: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor | None]:
        """Scores and probabilities of the experts that may be chosen; -inf and 0 of the others."""
        limits = [(context.candidates, True)]
        if (own := self.candidates) is not None and (allowed := own(context)) is not None:
            limits.append((allowed.to(scores.device), own.renormalise))
        for allowed, renormalise in limits:
            if allowed is not None and renormalise:
                scores = scores.masked_fill(~allowed, -torch.inf)
        probabilities = self.gate.probabilities(scores)
        for allowed, _ in limits:
            if allowed is None:
                continue
            scores = scores.masked_fill(~allowed, -torch.inf)
            if probabilities is not None:  # a softmax over no candidates at all is NaN
                probabilities = probabilities.masked_fill(~allowed, 0.0)
        return scores, probabilities

    def extra_repr(self) -> str:
        return "" if self.capacity is None else f"capacity={self.capacity}"


class TopKRouter(Router):
    """Each thing goes to the k experts that score highest.

    scorer: "linear", "affine" (with a bias for each expert), "cosine" (X-MoE), "mlp" (two layers),
        "noisy" (Shazeer et al. 2017) or a module of your own.
    gate: "softmax" (softmax over all, then top-k: OLMoE), "softmax-chosen" (top-k, then softmax:
        Mixtral), "sigmoid" (each for itself, then normalised: DeepSeek-V3) or "hard" (each the
        same: FactorLLM).
    scale: multiplies the weights; k · softmax over the chosen is that of Dynamic-DINO.
    bias_rate: the rate of a selection-only bias that balances without a loss (Wang et al. 2024).
    candidates: see `Router`.
    Raises InputError when k is not within 1..num_experts or a name is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int,
        scorer: str | nn.Module = "linear",
        gate: Literal["softmax", "softmax-chosen", "sigmoid", "hard"] = "softmax-chosen",
        losses: Iterable[AuxiliaryLoss] = (),
        capacity: float | None = None,
        bias_rate: float | None = None,
        candidates: Candidates | None = None,
        scale: float = 1.0,
    ) -> None:
        if not 1 <= k <= num_experts:
            raise InputError(f"TopKRouter: k={k} of {num_experts} experts; 1 ≤ k ≤ E is needed")
        gates: dict[str, Callable[[], Gate]] = {
            "softmax": lambda: SoftmaxGate(scale=scale),
            "softmax-chosen": lambda: SoftmaxGate("chosen", scale),
            "sigmoid": lambda: SigmoidGate(scale=scale),
            "hard": lambda: HardGate(scale),
        }
        if gate not in gates:
            raise unknown("gate", gate, gates)
        bias = None if bias_rate is None else SelectionBias(num_experts, bias_rate)
        scorer = _scorer(scorer, dim, num_experts)
        super().__init__(scorer, TopK(k, bias), gates[gate](), losses, capacity, candidates)


class ExpertChoiceRouter(Router):
    """Each expert takes the things it likes best; `factor` is the mean count of experts per thing.

    Source: Zhou et al. 2022. Not causal: never use it to generate text.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        factor: float = 2.0,
        scorer: str | nn.Module = "linear",
        losses: Iterable[AuxiliaryLoss] = (),
    ) -> None:
        scorer = _scorer(scorer, dim, num_experts)
        super().__init__(scorer, ExpertChoice(factor), SoftmaxGate("all"), losses)


class SoftRouter(Router):
    """Every expert serves every thing, weighted by a softmax: the dense mixture of Jacobs 1991."""

    def __init__(
        self,
        dim: int,
        num_experts: int,
        scorer: str | nn.Module = "linear",
        losses: Iterable[AuxiliaryLoss] = (),
    ) -> None:
        super().__init__(_scorer(scorer, dim, num_experts), All(), SoftmaxGate("all"), losses)


class HashRouter(Router):
    """A fixed pseudo-random set of k experts per token id; nothing is learnt.

    Needs `tokens` in the context. Source: Hash Layers (Roller et al. 2021).
    Raises InputError when k is not within 1..num_experts.
    """

    def __init__(self, num_experts: int, k: int = 1, seed: int = 0) -> None:
        if not 1 <= k <= num_experts:
            raise InputError(f"HashRouter: k={k} of {num_experts} experts; 1 ≤ k ≤ E is needed")
        super().__init__(HashScorer(num_experts, seed), TopK(k), UniformGate())


def _scorer(scorer: str | nn.Module, dim: int, num_experts: int) -> nn.Module:
    if isinstance(scorer, nn.Module):
        return scorer
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    return SCORERS[scorer](dim, num_experts)
