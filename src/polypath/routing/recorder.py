"""Recording where everything went, and making a model go there again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.routing.context import RoutingContext
from polypath.routing.files import read_tensors, write_tensors
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
        tensors = {
            f"{layer}/{i}/{name}": tensor
            for layer, parts in self._layers.items()
            for i, part in enumerate(parts)
            for name, tensor in part.tensors().items()
        }
        # The format sorts its keys; the order of the layers is part of the record.
        write_tensors(path, tensors, {"layers": json.dumps(list(self._layers))})

    @classmethod
    def read(cls, path: str | Path) -> Routes:
        """Read what `save` wrote; raises InputError when the file holds something else."""
        tensors, facts = read_tensors(path)
        try:
            layers: dict[str, dict[int, dict[str, Tensor]]]
            layers = {name: {} for name in json.loads(facts["layers"])}
            for key, tensor in tensors.items():
                layer, index, name = key.rsplit("/", 2)
                layers[layer].setdefault(int(index), {})[name] = tensor
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} holds no recorded routes: {error!r}") from error
        return cls(
            {
                layer: [Routing.from_tensors(parts[i]) for i in sorted(parts)]
                for layer, parts in layers.items()
            }
        )


@contextmanager
def record(model: nn.Module, device: str | torch.device | None = None) -> Iterator[Routes]:
    """Record every layer's Routing of every forward inside the block, without gradients.

    device: where to keep the records; where they were made by default.
    Layers that run again for their gradient (activation checkpointing) are not recorded again.
    Raises InputError when the model has no routed layers.
    """
    layers = _layers_of(model, "record")
    names = {layer: name for name, layer in layers.items()}
    kept: dict[str, list[Routing]] = {name: [] for name in layers}

    def listen(layer: MoE, routing: Routing) -> None:
        if not _in_backward():
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

    weights="recorded": routers do not run at all; losses are those recorded, without gradients.
    weights="computed": the recorded experts, weighted by what the router says now, with gradients;
        for training on the experts that inference chose. Choices that capacity dropped were not
        recorded; a gate that shares one out among the chosen shares it among the rest.
    Under activation checkpointing, which runs layers again, every forward has to be followed by its
    own backward before the next.
    Raises InputError when layers or sizes do not match, or when there are more forwards than were
    recorded.
    """
    if weights not in ("recorded", "computed"):
        raise unknown("weights of a replay", weights, ("recorded", "computed"))
    layers = _layers_of(model, "replay")
    absent = layers.keys() - routes.keys()
    if absent:
        raise InputError(f"replay: no routes were recorded for {', '.join(sorted(absent))}")
    before = {layer: layer.override for layer in layers.values()}
    for name, layer in layers.items():
        layer.override = _Replay(name, routes[name], weights == "computed")
    try:
        yield
    finally:
        for layer, override in before.items():
            layer.override = override


@dataclass
class _Replay:
    """One layer's routes, handed out in turn.

    turn: the number of forwards so far. repeated: the last one has run again in a backward.
    """

    layer: str
    routes: Sequence[Routing]
    computed: bool
    turn: int = 0
    repeated: bool = False

    def __call__(self, layer: MoE, rows: Tensor, context: RoutingContext) -> Routing:
        routing = self.again() if _in_backward() else self.next()
        if len(routing) != len(rows):
            raise InputError(
                f"replay: {self.layer} got {len(rows)} things, {len(routing)} were recorded"
            )
        routing = routing.to(rows.device)
        if self.computed:
            return layer.router(rows, replace(context, experts=routing.experts))
        return routing

    def next(self) -> Routing:
        if self.turn == len(self.routes):
            raise InputError(
                f"replay: {self.layer} ran more often than was recorded, {self.turn} times"
            )
        self.turn += 1
        self.repeated = False
        return self.routes[self.turn - 1]

    def again(self) -> Routing:
        if self.repeated or not self.turn:
            raise InputError(
                f"replay: {self.layer} runs again for a forward before the last; under activation "
                "checkpointing, call backward after each forward"
            )
        self.repeated = True
        return self.routes[self.turn - 1]


def _in_backward() -> bool:
    """Whether this forward runs within a backward, to make what checkpointing did not keep."""
    return torch._C._current_graph_task_id() != -1


def _layers_of(model: nn.Module, what: str) -> dict[str, MoE]:
    layers = routed_layers(model)
    if not layers:
        raise InputError(
            f"{what}: {type(model).__name__} has no routed layers; "
            "polypath.language.attach puts them in, or adopts those of a checkpoint"
        )
    return layers
