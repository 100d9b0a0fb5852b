"""Dense feed-forward layers cut into experts, by sets of their hidden units.

An activation acts on each unit by itself, so that slices that have each unit once sum to the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        return self._matrix("down").shape[1]

    @property
    def dim(self) -> int:
        """D."""
        return self._matrix("down").shape[0]

    @property
    def biased(self) -> bool:
        return self.projections["down"].bias is not None

    def _matrix(self, name: str) -> Tensor:
        place = self.projections[name].weight
        return place.of(place.parameter)

    def weights(self) -> Weights:
        """Its parameters as a bank of one reads them: (1, ·F, D), bias, (1, D, F), bias; views."""
        names = ["gate", "up"] if "gate" in self.projections else ["up"]
        inner = [self._matrix(name) for name in names]
        offsets = [p.bias for name in names if (p := self.projections[name]).bias is not None]
        b_in = torch.cat([cut.of(cut.parameter) for cut in offsets]) if offsets else None
        last = self.projections["down"].bias
        b_out = None if last is None else last.of(last.parameter)
        w_in = inner[0] if len(inner) == 1 else torch.cat(inner)
        parts = (w_in, b_in, self._matrix("down"), b_out)
        return tuple(None if part is None else part.detach()[None] for part in parts)


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


def taken(weights: Weights, kind: Kind, sets: Tensor, share: float = 1.0) -> Weights:
    """Slices of a layer's weights, stacked: (E, ·m, D), bias, (E, D, m), bias.

    weights: of one network, (1, ...) each. sets: (E, m) int64, the hidden units of each slice.
    share: of the last bias that each slice gets.
    Raises InputError when a unit is not there.
    """
    w_in, b_in, w_out, b_out = weights
    width = w_out.shape[2]
    if sets.dim() != 2 or not sets.numel() or int(sets.min()) < 0 or int(sets.max()) >= width:
        raise InputError(f"slices: sets {tuple(sets.shape)} of hidden units 0 to {width - 1}")
    blocks = w_in[0].unflatten(0, (ACTIVATIONS[kind].width, width))
    inner = blocks[:, sets].transpose(0, 1).flatten(1, 2)
    offsets = None
    if b_in is not None:
        parts = b_in[0].unflatten(0, (ACTIVATIONS[kind].width, width))
        offsets = parts[:, sets].transpose(0, 1).flatten(1)
    outer = w_out[0][:, sets].transpose(0, 1)
    last = None if b_out is None else (b_out * share).expand(len(sets), -1)
    return inner, offsets, outer, last


@torch.no_grad()
def fill(bank: FeedForwardExperts, weights: Weights) -> None:
    """Write stacked weights into a bank; raises InputError where a shape or a bias misfits."""
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


def sum_error(
    whole: Weights, parts: Weights, kind: Kind, groups: Sequence[Sequence[int]], seed: int = 0
) -> float:
    """How far each group of slices is from summing to the whole, on 64 normal rows, in float64.

    whole: (1, ...) each. Relative: the largest difference over the largest value of the whole.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(64, whole[2].shape[1], generator=generator, dtype=torch.float64)
    right = outputs(whole, kind, rows)[:, 0]
    every = outputs(parts, kind, rows)
    wrong = [every[:, list(group)].sum(1) - right for group in groups]
    return max(float(one.abs().max()) for one in wrong) / max(float(right.abs().max()), 1e-300)


def sets_of(masks: Tensor) -> Tensor:
    """(E, m) int64: the units that masks (E, F) bool keep, as many of each.

    Raises InputError when masks keep different numbers of units.
    """
    counts = masks.sum(1)
    if not len(counts) or (counts != counts[0]).any():
        raise InputError(f"slices: masks keep {counts.tolist()} units; as many of each are needed")
    return masks.nonzero()[:, 1].view(len(masks), -1)
