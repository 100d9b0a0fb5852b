"""Which experts a text engages: mean gates, whom to aim at and train, and whether choices stay.

T things, E experts, Z sequences.
Source: UOE / SEUF, arXiv 2411.18797, section on expert attribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from polypath.errors import InputError, unknown
from polypath.experts.views import experts_of
from polypath.routing import Routing, record, routed_layers
from polypath.routing.layer import rehearsal
from polypath.surgery.freezing import Trainable

Batch = Mapping[str, Tensor]
"""What a model reads, by the names of its arguments; labels beside it are kept from it."""

Scope = Literal["expert", "experts", "routers", "all"]

Found = TypeVar("Found")

Affinity = dict[str, Tensor]
"""For each layer's name, (E,) float64 on the CPU."""


def inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The arguments of a forward over a batch, on the model's device, without its labels."""
    device = next(model.parameters()).device
    given: dict[str, Any] = {n: t.to(device) for n, t in batch.items() if n != "labels"}
    return given | ({"use_cache": False} if isinstance(model, PreTrainedModel) else {})


def read(model: nn.Module, batch: Batch) -> None:
    """Let a model's layers read a batch; what a language model would say of it is not made."""
    body = model.base_model if isinstance(model, PreTrainedModel) else model
    body(**inputs(model, batch))


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Inside the block a model is in evaluation mode; after it, each module is as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:  # the flag alone: train(False) may do more, as merge adapters
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def choices(routing: Routing) -> Tensor:
    """(T, E) bool: which experts serve each thing."""
    things, num_experts = routing.scores.shape
    slots = torch.zeros(things, num_experts + 1, dtype=torch.bool, device=routing.experts.device)
    return slots.scatter_(1, routing.experts + 1, True)[:, 1:]  # empty slots are -1


def gates(routing: Routing) -> Tensor:
    """(T, E): the softmax over all experts where they were chosen, 0 elsewhere.

    Not renormalised, whatever the layer's own gate does with its scores; rows sum to 1 at most.
    """
    return routing.scores.softmax(-1).masked_fill(~choices(routing), 0.0)


def affinity(model: nn.Module, batches: Iterable[Batch], tokens: int | None = None) -> Affinity:
    """How strongly the text of batches engages each expert of each routed layer (equation 2).

    s_i = 1/Z Σ_j 1/L_j Σ_t g_{i,t}: the mean gate over a sequence's things, then over sequences, so
    a short one weighs as much as a long one. Padding, as a layer's mask tells it, is left out, and
    sequences of nothing else are. In evaluation mode and without gradients; needs no more memory
    for more batches.
    tokens: stop after the batch with which so many things were read; None to read all.
    Raises InputError where there are no routed layers or nothing to read.
    """
    layers = routed_layers(model)
    if not layers:
        raise InputError(
            f"affinity: {type(model).__name__} has no routed layers; polypath.language.attach puts "
            "them in, or adopts those of a checkpoint"
        )
    means = {name: _Mean() for name in layers}
    with rehearsal(model), evaluation(model), ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(means[name].hear).remove)
        for batch in batches:
            read(model, batch)
            if tokens is not None and max(mean.things for mean in means.values()) >= tokens:
                break
    silent = [name for name, mean in means.items() if not mean.sequences]
    if silent:
        raise InputError(f"affinity: {', '.join(silent)} read nothing; give batches with tokens")
    return {name: mean.value() for name, mean in means.items()}


class _Mean:
    """The mean of sequences' mean gates, as they come."""

    def __init__(self) -> None:
        self.sum: Any = 0.0
        self.sequences = 0
        self.things = 0

    def hear(self, layer: Any, args: tuple, y: Any) -> None:
        """A hook: add what a layer made of x (Z, ..., D)."""
        routing = layer.last
        shape = (args[0].shape[0], -1)
        mask = routing.mask
        if mask is None:
            mask = torch.ones(len(routing), dtype=torch.bool, device=routing.experts.device)
        own = gates(routing).double().masked_fill(~mask[:, None], 0.0)
        lengths = mask.view(shape).sum(1)
        means = own.view(*shape, own.shape[1]).sum(1) / lengths.clamp_min(1)[:, None]
        self.sum = self.sum + means.sum(0)
        self.sequences += int((lengths > 0).sum())
        self.things += int(lengths.sum())

    def value(self) -> Tensor:
        return (self.sum / self.sequences).cpu()


@dataclass(frozen=True)
class Aim:
    """An expert to work on, by its layer's name and its number. affinity: what it had.

    rank: its place among all experts of all layers, 1 for the highest affinity.
    """

    layer: str
    expert: int
    affinity: float
    rank: int


def ranked(affinity: Mapping[str, Tensor]) -> list[Aim]:
    """All experts, the highest affinity first; of equals the lower layer and number first."""
    every = [(-float(v), i, e) for i, s in enumerate(affinity.values()) for e, v in enumerate(s)]
    names = list(affinity)
    return [Aim(names[i], e, -v, place) for place, (v, i, e) in enumerate(sorted(every), 1)]


def targets(affinity: Mapping[str, Tensor], count: int = 1, within_layer: bool = True) -> list[Aim]:
    """The `count` experts of highest affinity, highest first.

    within_layer: all from the layer that has the highest, which the paper finds to be better than
        any of all layers.
    Only routed experts have an affinity, so shared ones are never among them.
    Raises InputError where there are not so many.
    """
    every = ranked(affinity)
    if within_layer:
        every = [aim for aim in every if aim.layer == every[0].layer]
    if not 1 <= count <= len(every):
        where = f"in {every[0].layer}" if within_layer and every else "in all"
        raise InputError(f"targets: count={count}; there are {len(every)} experts {where}")
    return every[:count]


def agreement(first: Mapping[str, Tensor], second: Mapping[str, Tensor], k: int) -> float:
    """The share of the k highest experts of a layer that two affinities have in common.

    The mean over layers; 1 where both say the same. Raises InputError where layers differ.
    """
    if list(first) != list(second):
        raise InputError("agreement: two affinities of different layers; of one model is right")
    shared = [
        len(set(a.topk(k).indices.tolist()) & set(second[name].topk(k).indices.tolist())) / k
        for name, a in first.items()
    ]
    return sum(shared) / len(shared)


def routings(model: nn.Module, batch: Batch) -> dict[str, Routing]:
    """Where each routed layer sends the things of a batch, as the model stands."""
    with record(model) as routes:
        read(model, batch)
    return routes.joined()


class Original:
    """A model as it was when this was made, for the price of the parameters that may change.

    parameters: those; all others have to stay as they are.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self.model = model
        self._first = {id(p): p.detach().clone() for p in parameters}

    def of(self, parameter: nn.Parameter) -> Tensor:
        """What one of the parameters was."""
        return self._first[id(parameter)]

    def __call__(self, run: Callable[[nn.Module, Batch], Found], batch: Batch) -> Found:
        """What `run` gives for the model as it was and a batch; no graph and no trace of it."""
        values = {
            f"model.{name}": self._first[id(parameter)]
            for name, parameter in self.model.named_parameters()
            if id(parameter) in self._first
        }
        with rehearsal(self.model):
            return functional_call(_Running(self.model, run), values, (batch,))


class _Running(nn.Module):
    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Batch], Any]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, batch: Batch) -> Any:
        return self.run(self.model, batch)


@torch.no_grad()
def overlap(
    model: nn.Module, original: Original, batches: Iterable[Batch], tokens: int | None = None
) -> dict[str, float]:
    """For each layer, the mean over things of |chosen now ∩ chosen before| / |chosen before|.

    In evaluation mode. Padding is left out, and so are things that nothing served before.
    tokens: stop after the batch with which so many things were counted; None to read all.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    with rehearsal(model), evaluation(model):
        for batch in batches:
            now = routings(model, batch)
            for name, was in original(routings, batch).items():
                old, new = choices(was), choices(now[name])
                counted = old.any(1) if was.mask is None else old.any(1) & was.mask
                kept = (old & new).sum(1) / old.sum(1).clamp_min(1)
                sums[name] = sums.get(name, 0.0) + float(kept[counted].double().sum())
                counts[name] = counts.get(name, 0) + int(counted.sum())
            if tokens is not None and max(counts.values()) >= tokens:
                break
    return {name: sums[name] / max(counts[name], 1) for name in sums}


def named(affinity: Mapping[str, Tensor], pairs: Iterable[tuple[str, int]]) -> list[Aim]:
    """The experts that are named by their layers and numbers, each once.

    Raises InputError where one is not there.
    """
    known = {(aim.layer, aim.expert): aim for aim in ranked(affinity)}
    pairs = list(dict.fromkeys((layer, expert) for layer, expert in pairs))
    for layer, expert in pairs:
        if layer not in affinity:
            raise unknown("routed layer", layer, affinity)
        if (layer, expert) not in known:
            last = len(affinity[layer]) - 1
            raise InputError(f"targets: {layer} has experts 0 to {last}, not {expert}")
    return [known[pair] for pair in pairs]


def trainable(model: nn.Module, scope: Scope, aims: Sequence[Aim]) -> Trainable:
    """What a scope trains.

    "expert": the targets, and what the routers of their layers have for themselves (UOE).
    "experts", "routers": all routed experts, all routers. "all": every parameter.
    Raises InputError where that is nothing.
    """
    if scope == "all":
        return Trainable(model.parameters())
    views = experts_of(model)
    routers = {
        name: [tensor for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]
        for name, tensors in views.routers.items()
    }
    if scope == "experts":
        parts = Trainable(place.parameter for view in views for place in view.places)
    elif scope == "routers":
        parts = Trainable(parameter for own in routers.values() for parameter in own)
    else:
        at = {(aim.layer, aim.expert) for aim in aims}
        layers = {layer for layer, _ in at}
        others = {id(p) for name, own in routers.items() if name not in layers for p in own}
        parts = Trainable(
            [p for name in routers if name in layers for p in routers[name] if id(p) not in others],
            [view for view in views if (view.layer, view.expert) in at],
        )
    if not parts.count():
        raise InputError(f"unlearning: scope {scope!r} has no parameters to train in this model")
    return parts
