"""Routed layers built from their plain description, a whole stack at once.

At once, because layers may share what lies outside of them: a recurrent cell, a pool of experts, a
budget that depth divides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import nn

from polypath.errors import InputError
from polypath.experts.factored import FactoredExperts
from polypath.experts.feedforward import FeedForwardExperts
from polypath.experts.shared import SharedExpert
from polypath.language.config import LAYER_LOSSES, LOSSES, RoutedLayers
from polypath.language.options import (
    AttentionAware,
    Autonomous,
    Dynamic,
    Pregated,
    Recurrent,
    Reuse,
    Similarity,
)
from polypath.routing import (
    AttentionRouter,
    AutonomousRouter,
    AuxiliaryLoss,
    CosineScorer,
    DynamicRouter,
    ExpertChoiceRouter,
    HashRouter,
    LayerLoss,
    LinearScorer,
    MoE,
    PerSlice,
    PregatingScorer,
    ProgressiveScaling,
    RecurrentRouter,
    Router,
    SimilarityRouter,
    SoftmaxGate,
    SoftRouter,
    TopK,
    TopKRouter,
    schedule,
)

Stack = Callable[[RoutedLayers, int, Sequence[int]], list[MoE]]
"""From a description, D and the width of each layer's experts to the layers."""


def build_stack(routed: RoutedLayers, dim: int, hidden_default: int, count: int) -> list[MoE]:
    """`count` new layers, from below, for things of D = `dim`.

    hidden_default: the width of an expert where `routed` has none.
    Drawn from torch's global generator.
    """
    for name in ("hidden", "shared_hidden"):
        given = getattr(routed, name)
        if isinstance(given, Sequence) and len(given) != count:
            raise InputError(f"RoutedLayers.{name}: {len(given)} widths for {count} layers")
    widths = [_of_layer(routed.hidden, index) or hidden_default for index in range(count)]
    return STACKS[routed.router](routed, dim, widths)


def bank(routed: RoutedLayers, dim: int, hidden: int) -> FeedForwardExperts:
    """The experts of one layer."""
    return FeedForwardExperts(routed.num_experts, dim, hidden, routed.kind, routed.bias)


def layer(routed: RoutedLayers, dim: int, index: int, router: nn.Module, experts: nn.Module) -> MoE:
    """One layer of a router and its experts, with what else the description names.

    index: its place in the stack; layers that draw at random draw apart.
    """
    wide = _of_layer(routed.shared_hidden, index)
    shared = SharedExpert(dim, wide, routed.kind) if wide else None
    return MoE(router, experts, shared, layer_losses(routed, index))


def _of_layer(width: int | Sequence[int] | None, index: int) -> int | None:
    return width[index] if isinstance(width, Sequence) else width


def router_losses(routed: RoutedLayers) -> list[AuxiliaryLoss]:
    """The auxiliary losses of one router."""
    weights = cast(Mapping[str, float], routed.losses or {})
    return [make(weights[name]) for name, make in LOSSES.items() if name in weights]


def layer_losses(routed: RoutedLayers, index: int) -> list[LayerLoss]:
    """The losses on the parameters of the layer that has this place in the stack."""
    losses = []
    for name, value in (routed.losses or {}).items():
        if name in LAYER_LOSSES:
            settings = value if isinstance(value, Mapping) else {"weight": value}
            losses.append(LAYER_LOSSES[name](**settings))
            losses[-1].seed = index
    return losses


def _apart(make: Callable[[RoutedLayers, int], Router]) -> Stack:
    """Layers that share nothing, each with a router that `make` gives for D."""

    def stack(routed: RoutedLayers, dim: int, widths: Sequence[int]) -> list[MoE]:
        layers = []
        for index, hidden in enumerate(widths):
            experts = bank(routed, dim, hidden)
            layers.append(layer(routed, dim, index, make(routed, dim), experts))
        return layers

    return stack


def _top_k(routed: RoutedLayers, dim: int) -> Router:
    return TopKRouter(
        dim,
        routed.num_experts,
        routed.k,
        routed.scorer,
        routed.gate,
        router_losses(routed),
        routed.capacity,
        routed.bias_rate,
        scale=routed.scale,
    )


def _per_slice(routed: RoutedLayers, dim: int) -> Router:
    scorer = LinearScorer(dim, routed.num_experts)
    gate = SoftmaxGate("chosen", routed.scale)
    return Router(scorer, PerSlice(routed.k), gate, router_losses(routed))


def _expert_choice(routed: RoutedLayers, dim: int) -> Router:
    losses = router_losses(routed)
    return ExpertChoiceRouter(dim, routed.num_experts, float(routed.k), routed.scorer, losses)


def _hash(routed: RoutedLayers, dim: int) -> Router:
    return HashRouter(routed.num_experts, routed.k)


def _soft(routed: RoutedLayers, dim: int) -> Router:
    return SoftRouter(dim, routed.num_experts, routed.scorer, router_losses(routed))


def _similarity(routed: RoutedLayers, dim: int) -> Router:
    own = cast(Similarity, routed.own_options())
    return SimilarityRouter(
        dim,
        routed.num_experts,
        routed.k,
        router_losses(routed),
        routed.gate,
        math.inf if own.temperature is None else own.temperature,
        own.window,
        own.voters,
        start=own.start,
    )


def _attention(routed: RoutedLayers, dim: int) -> Router:
    own = cast(AttentionAware, routed.own_options())
    return AttentionRouter(
        dim,
        routed.num_experts,
        routed.k,
        router_losses(routed),
        routed.gate,
        math.inf if own.sigma is None else own.sigma,
        own.heads,
        own.relative,
        own.detach,
        own.start,
    )


def _recurrent(routed: RoutedLayers, dim: int, widths: Sequence[int]) -> list[MoE]:
    own = cast(Recurrent, routed.own_options())
    cells = {"gru": nn.GRUCell, "rnn": nn.RNNCell, "lstm": nn.LSTMCell}
    cell = cells[own.cell](own.state, own.state)
    projection = nn.Linear(dim, own.state, bias=False) if own.shared_projection else None
    layers = []
    for index, hidden in enumerate(widths):
        experts = bank(routed, dim, hidden)
        router = RecurrentRouter(
            dim,
            routed.num_experts,
            routed.k,
            cell,
            router_losses(routed),
            projection,
            CosineScorer(own.state, routed.num_experts) if own.cosine else None,
            own.passing,
            own.residual,
            own.residual_detached,
        )
        layers.append(layer(routed, dim, index, router, experts))
    return layers


def _pregated(routed: RoutedLayers, dim: int, widths: Sequence[int]) -> list[MoE]:
    own = cast(Pregated, routed.own_options())
    scorer = PregatingScorer(own.vocabulary, routed.num_experts, own.width, own.heads)
    layers = []
    for index, hidden in enumerate(widths):
        router = Router(scorer, TopK(routed.k), SoftmaxGate("chosen"))
        layers.append(layer(routed, dim, index, router, bank(routed, dim, hidden)))
    return layers


def _autonomous(routed: RoutedLayers, dim: int, widths: Sequence[int]) -> list[MoE]:
    own = cast(Autonomous, routed.own_options())
    layers = []
    for index, hidden in enumerate(widths):
        experts = FactoredExperts(routed.num_experts, dim, hidden, routed.kind, own.rank)
        router = AutonomousRouter(experts, routed.k, router_losses(routed), routed.gate)
        layers.append(layer(routed, dim, index, router, experts))
    return layers


def _dynamic(routed: RoutedLayers, dim: int, widths: Sequence[int]) -> list[MoE]:
    own = cast(Dynamic, routed.own_options())
    mean, least = routed.num_experts, min(own.least, routed.num_experts)
    count = len(widths)
    sizes = schedule(own.schedule, count, least, 2 * mean - least, budget=mean * count)
    layers = []
    for index, size in enumerate(sizes):
        experts = FeedForwardExperts(size, dim, widths[index], routed.kind, routed.bias)
        router = DynamicRouter(
            dim,
            size,
            own.rule,
            min(own.value, size) if own.rule == "top" else own.value,
            router_losses(routed),
            own.most,
            own.renormalise,
            own.temperature,
            own.noise,
        )
        layers.append(layer(routed, dim, index, router, experts))
    return layers


def _reuse(routed: RoutedLayers, dim: int, widths: Sequence[int]) -> list[MoE]:
    own = cast(Reuse, routed.own_options())
    layers = []
    for first in range(0, len(widths), own.group):
        members = range(first, min(first + own.group, len(widths)))
        size = routed.num_experts * len(members)
        pool = FeedForwardExperts(size, dim, widths[first], routed.kind, routed.bias)
        for index in members:
            candidates = _scaling(routed, own, size, index, index - first)
            losses = router_losses(routed)
            router = TopKRouter(
                dim, size, routed.k, gate=routed.gate, losses=losses, candidates=candidates
            )
            layers.append(layer(routed, dim, index, router, pool))
    return layers


def _scaling(
    routed: RoutedLayers, own: Reuse, size: int, index: int, place: int
) -> ProgressiveScaling | None:
    """The limit of a layer that has this place in a group of `size` experts."""
    if own.growth == "none":
        return None
    local = range(place * routed.num_experts, (place + 1) * routed.num_experts)
    least = routed.num_experts if own.least is None else own.least
    return ProgressiveScaling(
        size,
        least,
        own.start,
        own.end,
        own.growth,
        local if own.local_first else (),
        own.renormalise,
        seed=index,
    )


STACKS: dict[str, Stack] = {
    "top-k": _apart(_top_k),
    "expert-choice": _apart(_expert_choice),
    "hash": _apart(_hash),
    "soft": _apart(_soft),
    "similarity": _apart(_similarity),
    "attention": _apart(_attention),
    "recurrent": _recurrent,
    "reuse": _reuse,
    "autonomous": _autonomous,
    "dynamic": _dynamic,
    "pregated": _pregated,
    "per-slice": _apart(_per_slice),
}
