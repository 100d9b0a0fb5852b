"""Dense feed-forward layers cut into experts, by sets of their hidden units.

An activation acts on each unit by itself, so that slices that have each unit once sum to the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.experts import FeedForwardExperts
from polypath.experts.activations import ACTIVATIONS
from polypath.experts.feedforward import FeedForward, Kind
from polypath.experts.layouts import Projection, linears
from polypath.language.families import Decoder
from polypath.routing.dispatch import Weights

# What transformers calls activations, to what a bank of experts calls its kind.
GATED: dict[str, Kind] = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}
PLAIN: dict[str, Kind] = {"relu": "relu", "gelu": "gelu", "relu2": "relu2"}


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A dense feed-forward layer D → F → D, wherever a model keeps its maps.

    projections: "up", "down", and "gate" where it has gates. kind: of experts with its activation.
    last: the module of the last map, whose input are the F activations.
    """

    projections: dict[str, Projection]
    kind: Kind
    last: nn.Module

    @property
    def width(self) -> int:
        """F."""
        return self.matrix("down").shape[1]

    @property
    def dim(self) -> int:
        """D."""
        return self.matrix("down").shape[0]

    @property
    def biased(self) -> bool:
        return self.projections["down"].bias is not None

    def maps(self) -> list[str]:
        """The maps inside the activation, in the order in which experts stack them."""
        return [name for name in ("gate", "up") if name in self.projections]

    def bias(self, name: str) -> Tensor | None:
        """(out,) of a map, None where it has none; a view."""
        place = self.projections[name].bias
        return None if place is None else place.of(place.parameter).detach()

    def matrix(self, name: str) -> Tensor:
        """(out, in) of a map; a view."""
        place = self.projections[name].weight
        return place.of(place.parameter).detach()

    def hidden(self, rows: Tensor) -> Tensor:
        """(R, F): the activations of all units on rows (R, D), in the dtype of the rows."""
        inner = []
        for name in self.maps():
            bias = self.bias(name)
            blocks = self.matrix(name).split(BLOCK)
            values = torch.cat([F.linear(rows, block.to(rows.dtype)) for block in blocks], 1)
            inner.append(values if bias is None else values + bias.to(rows.dtype))
        return ACTIVATIONS[self.kind](torch.cat(inner, 1))

    def output(self, rows: Tensor) -> Tensor:
        """(R, D): what the layer makes of rows (R, D), in their dtype."""
        y = _products(self.matrix("down"), self.hidden(rows))
        bias = self.bias("down")
        return y if bias is None else y + bias.to(rows.dtype)

    def weights(self) -> Weights:
        """A copy of its parameters as a bank of one has them: (1, ·F, D), bias, (1, D, F), bias."""
        every = Slices(self, torch.arange(self.width)[None])
        return *every.inner(), *every.outer()


BLOCK = 128
"""Units whose matrices are cast at once."""


def _products(matrix: Tensor, values: Tensor) -> Tensor:
    """values (R, in) times a matrix (out, in), in the values' dtype, without a cast copy of it."""
    blocks = zip(matrix.split(BLOCK, 1), values.split(BLOCK, 1), strict=True)
    return torch.stack([own @ block.to(own.dtype).T for block, own in blocks]).sum(0)


def dense_layer(decoder: Decoder, index: int) -> DenseLayer:
    """The dense feed-forward layer of a model at an index.

    Raises InputError when it is routed, its maps are not up, down and perhaps gate, or its
    activation is none that experts have.
    """
    modules = decoder.network(index)
    found: dict[str, Projection] = {}
    for name, module in zip([*decoder.family.absorbed, decoder.family.mlp], modules, strict=True):
        single = isinstance(module, nn.Linear)
        given = {"fc1": "up", "fc2": "down"}.get(name, name) if single else ""
        found |= {given if single else own: place for own, place in linears(module).items()}
    where = f"layer {index} of {type(decoder.module).__name__}"
    if set(found) not in ({"up", "down"}, {"gate", "up", "down"}):
        raise InputError(f"{where} is no dense feed-forward layer; it has {sorted(found)}")
    name = getattr(decoder.module.config, decoder.family.activation)
    kinds = GATED if "gate" in found else PLAIN
    if name not in kinds:
        raise InputError(f"{where}: {unknown('activation', str(name), kinds)}")
    last = found["down"].weight.module
    return DenseLayer(found, kinds[name], last)


class Slices:
    """Sets of a dense layer's units as stacked experts, made one matrix after the other.

    sets: (E, m) int64, the hidden units of each slice. share: of the last bias that each gets.
    What comes out is tried on 64 normal rows in float64, see `error`.
    Raises InputError when a unit is not there.
    """

    def __init__(self, dense: DenseLayer, sets: Tensor, share: float = 1.0) -> None:
        width = dense.width
        if sets.dim() != 2 or not sets.numel() or int(sets.min()) < 0 or int(sets.max()) >= width:
            raise InputError(f"slices: sets {tuple(sets.shape)} of hidden units 0 to {width - 1}")
        self.dense = dense
        self.sets = sets
        self.share = share
        self._hidden: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def inner(self) -> tuple[Tensor, Tensor | None]:
        """(E, ·m, D), with its bias."""
        names, (count, units) = self.dense.maps(), self.sets.shape
        first = self.dense.matrix(names[0])
        made = torch.empty(count, len(names) * units, first.shape[1], dtype=first.dtype)
        for place, name in enumerate(names):
            matrix = self.dense.matrix(name)
            for expert, own in enumerate(self.sets):
                rows = slice(place * units, (place + 1) * units)
                torch.index_select(matrix, 0, own, out=made[expert, rows])
        found = [bias[self.sets] for name in names if (bias := self.dense.bias(name)) is not None]
        biases = torch.cat(found, 1) if found else None
        self._try_inner(made, biases)
        return made, biases

    def outer(self) -> tuple[Tensor, Tensor | None]:
        """(E, D, m), with its bias."""
        matrix, bias = self.dense.matrix("down"), self.dense.bias("down")
        made = torch.empty(len(self.sets), len(matrix), self.sets.shape[1], dtype=matrix.dtype)
        for expert, own in enumerate(self.sets):
            torch.index_select(matrix, 1, own, out=made[expert])
        last = None if bias is None else (bias * self.share).expand(len(self.sets), -1).clone()
        self._try_outer(made, last)
        return made, last

    def _try_inner(self, made: Tensor, biases: Tensor | None) -> None:
        activation = ACTIVATIONS[self.dense.kind]
        for expert, matrix in enumerate(made):
            blocks = [F.linear(probes(self.dense), block.double()) for block in matrix.split(BLOCK)]
            values = torch.cat(blocks, 1)
            if biases is not None:
                values += biases[expert].double()
            self._hidden.append(activation(values))

    def _try_outer(self, made: Tensor, last: Tensor | None) -> None:
        for expert, values in enumerate(self._hidden):
            y = _products(made[expert], values)
            self._outputs.append(y if last is None else y + last[expert].double())

    def error(self, whole: Tensor, groups: Sequence[Sequence[int]]) -> float:
        """How far each group of slices is from summing to `whole`, the layer's output on `probes`.

        Relative: the largest difference over the largest value; after `inner` and `outer`.
        """
        sums = [torch.stack([self._outputs[e] for e in group]).sum(0) for group in groups]
        wrong = max(float((own - whole).abs().max()) for own in sums)
        return wrong / max(float(whole.abs().max()), 1e-300)


def probes(dense: DenseLayer) -> Tensor:
    """(64, D) float64: the normal rows on which slices are tried."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, dense.dim, generator=generator, dtype=torch.float64)


@torch.no_grad()
def fill(bank: Any, weights: Weights) -> None:
    """Write stacked weights into a bank; raises InputError where a shape or a bias misfits."""
    assert isinstance(bank, FeedForwardExperts)
    for own, new in zip(bank.weights(), weights, strict=True):
        if (own is None) != (new is None) or (own is not None and own.shape != new.shape):
            shapes = [None if one is None else tuple(one.shape) for one in (own, new)]
            raise InputError(f"slices: weights {shapes[1]} for a bank that has {shapes[0]}")
        if own is not None:
            own.copy_(new)


def outputs(weights: Weights, kind: Kind, rows: Tensor) -> Tensor:
    """(R, E, D): what each network of stacked weights makes of rows (R, D)."""
    network = FeedForward(ACTIVATIONS[kind])
    every = []
    for expert in range(len(weights[0])):
        own = tuple(None if part is None else part[expert].to(rows.dtype) for part in weights)
        every.append(network.equation(rows, own, F.linear))
    return torch.stack(every, 1)


def sets_of(masks: Tensor) -> Tensor:
    """(E, m) int64: the units that masks (E, F) bool keep, as many of each.

    Raises InputError when masks keep different numbers of units.
    """
    counts = masks.sum(1)
    if not len(counts) or (counts != counts[0]).any():
        raise InputError(f"slices: masks keep {counts.tolist()} units; as many of each are needed")
    return masks.nonzero()[:, 1].view(len(masks), -1)
