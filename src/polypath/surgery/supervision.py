"""Teaching routers: pulling what they say of things towards what they should have said.

What is pulled is the softmax of the scores over all experts, in float32, whatever the gate makes of
it. Targets carry no gradient. Only the router gets one, unless the things it read have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.routing import MoE, Routing

Measure = Literal["kl", "reverse kl", "squared"]

FLOOR = 1e-7
"""Probabilities are kept from this to one less this before their logarithm is taken."""


def distance(probabilities: Tensor, target: Tensor, measure: Measure = "kl") -> Tensor:
    """(T,): how far probabilities (T, E) are from a target (T, E), which gets no gradient.

    "kl": KL(probabilities ‖ target); "reverse kl": KL(target ‖ probabilities); "squared": the sum
    over experts of squared differences. In float32 at least.
    Raises InputError where shapes differ or the measure is unknown.
    """
    if probabilities.shape != target.shape:
        raise InputError(
            f"supervision: probabilities {tuple(probabilities.shape)} and a target "
            f"{tuple(target.shape)}; one value for each expert of each thing is needed"
        )
    p, q = probabilities, target.detach().to(probabilities)
    if measure == "squared":
        return (p - q).square().sum(-1)
    if measure not in ("kl", "reverse kl"):
        raise unknown("measure", measure, ("kl", "reverse kl", "squared"))
    p, q = (one.clamp(FLOOR, 1 - FLOOR) for one in (p, q))
    if measure == "reverse kl":
        p, q = q, p
    return (p * (p / q).log()).sum(-1)


class Target(NamedTuple):
    """What a router should have said: values (M, E) of the things at places (M,), or of all T."""

    values: Tensor
    places: Tensor | None = None


Teach = Callable[[str, MoE, Tensor, Routing], Target | None]
"""From a layer's name, the layer, the rows (T, D) it read and its routing to a target; no graph."""


class Lessons:
    """What supervised layers were told in the last forward: distances by layer."""

    def __init__(self) -> None:
        self.distances: dict[str, Tensor] = {}

    def loss(self) -> Tensor:
        """The mean distance, over things and then over layers.

        Raises InputError when no layer was taught.
        """
        if not self.distances:
            raise InputError("supervision: no layer has run, or none had a target")
        return torch.stack([one.mean() for one in self.distances.values()]).mean()


@contextmanager
def supervise(
    layers: Mapping[str, MoE], teach: Teach, measure: Measure = "kl"
) -> Iterator[Lessons]:
    """Inside the block, every forward of the layers is compared with what `teach` says.

    Things that a routing's mask leaves out do not count. A layer without a target, or none of whose
    things count, tells nothing.
    """
    lessons = Lessons()

    def hook(name: str) -> Any:
        def compare(layer: Any, args: tuple, y: Any) -> None:
            routing = layer.last
            rows = args[0].reshape(-1, args[0].shape[-1])
            lessons.distances.pop(name, None)
            with torch.no_grad():
                target = teach(name, layer, rows, routing)
            if target is None:
                return
            p, mask = routing.scores.softmax(-1), routing.mask
            if target.places is not None:
                p = p[target.places]
                mask = None if mask is None else mask[target.places]
            far = distance(p, target.values, measure)
            if mask is not None:
                far = far[mask]
            if len(far):
                lessons.distances[name] = far

        return compare

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(hook(name))
            stack.callback(handle.remove)
        yield lessons
