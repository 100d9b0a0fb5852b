"""What a model does with a text, in one pass, in memory that does not grow with the text.

Of routed layers: how often each expert is chosen, raw scores against each other, the whole softmax,
who is chosen together. Of dense ones: how strongly each channel is active.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language.families import decoder_of
from polypath.routing import MoE, Routing
from polypath.surgery.slices import DenseLayer, dense_layer

Batch = Tensor | Mapping[str, Tensor]
"""Token ids (B, L), or a model's arguments by name, `attention_mask` for padding among them."""


@dataclass
class RoutingSums:
    """Sums over the things that a routed layer of E experts was given; padding does not count.

    things: how many. chosen: (E,) int64, choices. weights: (E,) float64, gates of chosen experts.
    probabilities: (E,) float64, the softmax over all experts. squares: (E, E) float64, products of
    raw scores. together: (E, E) int64, how often two serve one thing; zero on the diagonal.
    """

    things: int
    chosen: Tensor
    weights: Tensor
    probabilities: Tensor
    squares: Tensor
    together: Tensor

    @classmethod
    def empty(cls, num_experts: int) -> RoutingSums:
        one, two = (num_experts,), (num_experts, num_experts)
        double = torch.float64
        return cls(
            0,
            torch.zeros(one, dtype=torch.int64),
            torch.zeros(one, dtype=double),
            torch.zeros(one, dtype=double),
            torch.zeros(two, dtype=double),
            torch.zeros(two, dtype=torch.int64),
        )

    def add(self, routing: Routing) -> None:
        """Count a routing in."""
        if routing.mask is not None:
            routing = routing[routing.mask]
        routing = routing.detach().to("cpu")
        scores = routing.scores.double()
        # Experts that may not be chosen score -inf; they have no part in products.
        open_ = scores.masked_fill(scores == -torch.inf, 0.0)
        served = torch.zeros_like(scores, dtype=torch.bool)
        served.scatter_(1, routing.experts.clamp_min(0), routing.experts >= 0)
        both = served.float().T @ served.float()  # exact: a batch has less than 2²⁴ things
        self.things += len(routing)
        self.chosen += routing.load().long()
        self.weights += routing.importance().double()
        self.probabilities += scores.softmax(-1).sum(0)
        self.squares += open_.T @ open_
        self.together += both.long().fill_diagonal_(0)

    def usage(self) -> Tensor:
        """(E,) float64: the share of all choices that each expert got."""
        return self.chosen.double() / self.chosen.sum().clamp_min(1)

    def similarity(self) -> Tensor:
        """(E, E) float64: cosines of the experts' raw scores over all things."""
        lengths = self.squares.diagonal().sqrt().clamp_min(1e-12)
        return self.squares / lengths / lengths[:, None]


@dataclass
class ChannelSums:
    """How active the channels of a dense layer of width F are.

    things: how many were given. sizes: (F,) float64, the sum of |a| over them.
    """

    things: int
    sizes: Tensor

    def mean(self) -> Tensor:
        """(F,) float64: the mean of |a|."""
        return self.sizes / max(self.things, 1)


@dataclass
class Calibration:
    """What was recorded, by the index of the layer. things: how many things were given."""

    routed: dict[int, RoutingSums] = field(default_factory=dict)
    dense: dict[int, ChannelSums] = field(default_factory=dict)
    mask: Tensor | None = None

    def listen(self, index: int) -> Any:
        """A listener for the routed layer at `index`."""

        def listen(layer: MoE, routing: Routing) -> None:
            if index not in self.routed:
                self.routed[index] = RoutingSums.empty(routing.num_experts)
            self.routed[index].add(routing)

        return listen

    def watch(self, index: int, dense: DenseLayer) -> Any:
        """A hook before the last map of the dense layer at `index`, whose input is a(x)."""
        self.dense[index] = ChannelSums(0, torch.zeros(dense.width, dtype=torch.float64))

        def hook(module: nn.Module, args: tuple) -> None:
            values = args[0].detach().reshape(-1, dense.width)
            if self.mask is not None:
                values = values[self.mask.to(values.device)]
            self.dense[index].things += len(values)
            self.dense[index].sizes += values.abs().sum(0, dtype=torch.float64).cpu()

        return hook


@contextmanager
def calibrating(model: PreTrainedModel) -> Iterator[Calibration]:
    """Record every forward inside the block, of the model's routed and dense layers."""
    decoder = decoder_of(model)
    found = Calibration()
    routed = decoder.routed()
    with ExitStack() as stack:
        for index, layer in routed.items():
            listener = found.listen(index)
            layer.listeners.append(listener)
            stack.callback(layer.listeners.remove, listener)
        for index in range(len(decoder.layers)):
            if index not in routed and not hasattr(decoder.mlp(index), "experts"):
                dense = dense_layer(decoder, index)
                hook = found.watch(index, dense)
                stack.callback(dense.last.register_forward_pre_hook(hook).remove)
        yield found


@torch.no_grad()
def calibrate(model: PreTrainedModel, batches: Iterable[Batch]) -> Calibration:
    """What a model does with a text, in evaluation mode.

    Raises InputError when there is nothing to read.
    """
    before, seen = model.training, False
    model.eval()
    try:
        with calibrating(model) as found:
            for batch in batches:
                given = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
                mask = given.get("attention_mask")
                found.mask = None if mask is None else mask.flatten() > 0
                model(**{name: value.to(model.device) for name, value in given.items()})
                seen = True
    finally:
        model.train(before)
    if not seen:
        raise InputError("calibrate: no batches were given")
    return found
