"""Recording where everything went, and making a model go there again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing.context import RoutingContext
from polypath.routing.layer import MoE, routed_layers
from polypath.routing.record import Routing


class Routes(Mapping[str, list[Routing]]):
    """The routings of a model: for each layer's name, one Routing per forward, in order."""

    def __init__(self, layers: Mapping[str, list[Routing]]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, layer: str) -> list[Routing]:
        return self._layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def joined(self) -> dict[str, Routing]:
        """Each layer's forwards as one Routing over all their things."""
        return {name: Routing.cat(parts) for name, parts in self._layers.items() if parts}

    def save(self, path: str | Path) -> None:
        """Write all routings as one safetensors file."""
        from safetensors.torch import save_file

        tensors = {
            f"{layer}/{i}/{name}": tensor
            for layer, parts in self._layers.items()
            for i, part in enumerate(parts)
            for name, tensor in part.tensors().items()
        }
        save_file(tensors, path)

    @classmethod
    def read(cls, path: str | Path) -> Routes:
        """Read what `save` wrote; raises InputError when the file holds something else."""
        from safetensors.torch import load_file

        grouped: dict[str, dict[int, dict[str, Tensor]]] = {}
        for key, tensor in load_file(path).items():
            try:
                layer, index, name = key.rsplit("/", 2)
                grouped.setdefault(layer, {}).setdefault(int(index), {})[name] = tensor
            except ValueError as error:
                raise InputError(f"{path}: not recorded routes: unexpected key {key!r}") from error
        return cls(
            {
                layer: [Routing.from_tensors(parts[i]) for i in sorted(parts)]
                for layer, parts in grouped.items()
            }
        )


@contextmanager
def record(model: nn.Module, device: str | torch.device | None = None) -> Iterator[Routes]:
    """Record every layer's Routing of every forward inside the block, without gradients.

    device: where to keep the records; where they were made by default.
    Raises InputError when the model has no routed layers.
    """
    layers = _layers_of(model, "record")
    names = {layer: name for name, layer in layers.items()}
    kept: dict[str, list[Routing]] = {name: [] for name in layers}

    def listen(layer: MoE, routing: Routing) -> None:
        routing = routing.detach()
        kept[names[layer]].append(routing if device is None else routing.to(device))

    for layer in layers.values():
        layer.listeners.append(listen)
    try:
        yield Routes(kept)
    finally:
        for layer in layers.values():
            layer.listeners.remove(listen)


@contextmanager
def replay(
    model: nn.Module,
    routes: Mapping[str, list[Routing]],
    weights: Literal["recorded", "computed"] = "recorded",
) -> Iterator[None]:
    """Make the model take recorded routes again, forward by forward.

    weights="recorded": routers do not run at all.
    weights="computed": the recorded experts, weighted by what the router says now, with gradients;
        for training on the experts that inference chose.
    Raises InputError when layers or sizes do not match, or when there are more forwards than were
    recorded.
    """
    layers = _layers_of(model, "replay")
    absent = layers.keys() - routes.keys()
    if absent:
        raise InputError(f"replay: no routes were recorded for {', '.join(sorted(absent))}")
    turns = {layer: iter(routes[name]) for name, layer in layers.items()}
    names = {layer: name for name, layer in layers.items()}

    def take(layer: MoE, rows: Tensor, context: RoutingContext) -> Routing:
        routing = next(turns[layer], None)
        if routing is None:
            raise InputError(f"replay: {names[layer]} ran more often than was recorded")
        if len(routing) != len(rows):
            raise InputError(
                f"replay: {names[layer]} got {len(rows)} things, {len(routing)} were recorded"
            )
        if weights == "recorded":
            return routing
        return layer.router(rows, replace(context, experts=routing.experts))

    for layer in layers.values():
        layer.override = take
    try:
        yield
    finally:
        for layer in layers.values():
            layer.override = None


def _layers_of(model: nn.Module, what: str) -> dict[str, MoE]:
    layers = routed_layers(model)
    if not layers:
        raise InputError(
            f"{what}: {type(model).__name__} has no routed layers; "
            "polypath.language.attach puts them in, or adopts those of a checkpoint"
        )
    return layers
