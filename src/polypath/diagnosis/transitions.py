"""Where things that one expert serves go at the next layer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

from polypath.errors import InputError
from polypath.routing import Routing


def membership(routing: Routing) -> Tensor:
    """(T, E) float64: each thing's unit split evenly over the experts that it chose.

    Rows sum to 1, or to 0 where nothing was chosen or the mask leaves the thing out.
    """
    filled = routing.experts >= 0
    if routing.mask is not None:
        filled = filled & routing.mask[:, None]
    parts = filled.double() / filled.sum(-1, keepdim=True).clamp_min(1)
    empty = parts.new_zeros(len(routing), routing.num_experts)
    return empty.scatter_add_(1, routing.experts.clamp_min(0), parts)


def between(above: Routing, below: Routing) -> Tensor:
    """(E above, E below) float64: how many things go from an expert to one of the next layer.

    A thing with j experts above and k below counts 1 / (j · k) for each pair, so that the sum is
    the number of things served at both layers, and a row's sum what its expert serves of them.
    Raises InputError when the routings are of different numbers of things.
    """
    if len(above) != len(below):
        raise InputError(
            f"transitions: {len(above)} things above, {len(below)} below; "
            "both have to be of the same forward"
        )
    return membership(above).T @ membership(below)


def transitions(layers: Mapping[str, Routing]) -> list[Tensor]:
    """`between` of every two consecutive layers, as `Routes.joined()` gives them."""
    return [between(above, below) for above, below in pairwise(layers.values())]
