"""How many things change their experts: between checkpoints, and under noise.

Source: Improving Routing in Sparse Mixture of Experts with Graph of Tokens, arXiv 2505.00792.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing import Routing, routed_layers

NOISE = 0.15
"""The size of noise under which steadiness is told: a share of the length of what routers see."""


class Fluctuation(NamedTuple):
    """Shares of things, 0 to 1. first: whose heaviest expert changed. any: whose set did."""

    first: float
    any: float


def heaviest(routing: Routing) -> Tensor:
    """(T,) int64: the expert that counts most for each thing; -1 where it has none."""
    if routing.experts.shape[1] == 0:
        return routing.experts.new_full((len(routing),), -1)
    weights = routing.weights.masked_fill(routing.experts < 0, -torch.inf)
    return routing.experts.gather(1, weights.argmax(1, keepdim=True))[:, 0]


@torch.no_grad()
def fluctuation(before: Routing, after: Routing) -> Fluctuation:
    """How many of the same things go elsewhere in one routing than in the other.

    Both of the same things in the same context, without noise, in evaluation mode. A router that
    sends everything to one expert does not fluctuate: read it beside the load.
    Raises InputError when they do not have the same things and experts.
    """
    if before.scores.shape != after.scores.shape:
        raise InputError(
            f"fluctuation: {tuple(before.scores.shape)} things and experts before, "
            f"{tuple(after.scores.shape)} after; the same are needed"
        )
    first = heaviest(before) != heaviest(after)
    other = (_chosen(before) != _chosen(after)).any(dim=1)
    if after.mask is not None:
        first, other = first[after.mask], other[after.mask]
    if not len(first):
        return Fluctuation(float("nan"), float("nan"))
    return Fluctuation(float(first.double().mean()), float(other.double().mean()))


def _chosen(routing: Routing) -> Tensor:
    """(T, E) bool."""
    padded = torch.zeros(len(routing), routing.num_experts + 1, dtype=torch.bool)
    padded = padded.to(routing.experts.device)
    return padded.scatter_(1, routing.experts.remainder(routing.num_experts + 1), True)[:, :-1]


@contextmanager
def noise_on_routers(model: nn.Module, size: float = NOISE, seed: int = 0) -> Iterator[None]:
    """Inside the block routers see x + noise, while experts see x.

    size: the noise's length over that of x, thing by thing, in the mean.
    """
    made: dict[torch.device, torch.Generator] = {}

    def disturb(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = given
        if x.device not in made:
            made[x.device] = torch.Generator(x.device).manual_seed(seed)
        normal = torch.randn(x.shape, generator=made[x.device], device=x.device, dtype=x.dtype)
        length = x.square().mean(-1, keepdim=True).sqrt()
        return (x + size * length * normal, *others)

    hooks = [
        layer.router.register_forward_pre_hook(disturb) for layer in routed_layers(model).values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
