"""What a validation notes of the routes, and remembers until the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polypath.diagnosis import gate_mass, heaviest, pathway_distance, window_pathways
from polypath.routing import Routing, routed_layers

_PREFIX = "heaviest."


class Monitor:
    """Routing facts of one validation after another, of the same windows in the same order."""

    def __init__(self) -> None:
        self._heaviest: dict[str, Tensor] = {}

    def facts(self, layers: Mapping[str, Routing], length: int) -> dict[str, Any]:
        """How each layer routes the things of windows of `length`, in means over the things.

        count: experts of a thing. load: each expert's share of all choices. entropy: of the gate in
        nats, where the router has probabilities. fluctuation: things whose heaviest expert is
        another than at the validation before, where there was one.
        Over all layers, pathways: the mean distance between those of two windows, where all have
        probabilities.
        """
        loads = {name: routing.load() for name, routing in layers.items()}
        scored = {name: r for name, r in layers.items() if r.probabilities is not None}
        facts: dict[str, Any] = {
            "entropy": {name: float(r.entropy().mean()) for name, r in scored.items()},
            "load": {name: (load / load.sum()).tolist() for name, load in loads.items()},
            "count": {name: float(r.count().float().mean()) for name, r in layers.items()},
        }
        now = {name: heaviest(routing).cpu() for name, routing in layers.items()}
        changed = {
            name: float((experts != self._heaviest[name]).double().mean())
            for name, experts in now.items()
            if name in self._heaviest and self._heaviest[name].shape == experts.shape
        }
        self._heaviest = now
        if changed:
            facts["fluctuation"] = changed
        if layers and len(scored) == len(layers):
            facts["pathways"] = pathway_distance(window_pathways(layers, length))
        return facts

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that a resumed run notes what an unbroken one does."""
        return {_PREFIX + name: experts for name, experts in self._heaviest.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave, from among others."""
        self._heaviest = {
            name.removeprefix(_PREFIX): experts
            for name, experts in tensors.items()
            if name.startswith(_PREFIX)
        }


@torch.no_grad()
def kept_mass(model: nn.Module) -> dict[str, Any]:
    """mass: by layer that ran, the mean sum of a thing's weights in the last forward; or {}."""
    ran = {n: layer.last for n, layer in routed_layers(model).items() if layer.last is not None}
    return {"mass": {name: gate_mass(routing) for name, routing in ran.items()}} if ran else {}
