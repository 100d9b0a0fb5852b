"""Pathways: which experts a sample takes, layer by layer, and how far apart two of them are.

Source: Where to find Grokking in LLM Pretraining?, arXiv 2506.21551.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from torch import Tensor

from polypath.errors import InputError
from polypath.routing import Routing

Pathway = tuple[tuple[int, ...], ...]
"""The experts of a sample in each layer, from below, the heaviest first."""

_SEPARATOR, _FIRST = 1, 256


@torch.no_grad()
def sample_gates(routing: Routing, samples: Tensor) -> Tensor:
    """(N, E): the mean over the tokens of each sample of the gate over all experts, sums of one.

    samples: (T,) int64, the sample of each thing, 0 to N - 1. Things that do not count are left
        out.
    Raises InputError when the routing has no probabilities, or a sample nothing that counts.
    """
    if routing.probabilities is None:
        raise InputError("pathways: this routing has no probabilities; its router gives none")
    if samples.shape != (len(routing),):
        raise InputError(f"pathways: samples {tuple(samples.shape)} of {len(routing)} things")
    gates = routing.probabilities.double()
    gates = gates / gates.sum(-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).tiny)
    kept = torch.ones_like(samples, dtype=torch.bool) if routing.mask is None else routing.mask
    count = int(samples.max()) + 1 if len(samples) else 0
    things = torch.bincount(samples[kept], minlength=count)
    if not bool((things > 0).all()):
        raise InputError(f"pathways: sample {int((things == 0).nonzero()[0])} has nothing counted")
    sums = gates.new_zeros(count, routing.num_experts).index_add_(0, samples[kept], gates[kept])
    return sums / things[:, None]


@torch.no_grad()
def pathways(gates: Sequence[Tensor], threshold: float = 0.7) -> list[Pathway]:
    """The pathway of each of N samples: in every layer the fewest experts that hold the threshold.

    gates: (N, E) of each layer from below, as `sample_gates` gives; E may differ between layers.
    threshold: the share of the gate that the experts hold together; 0 gives the heaviest alone, 1
        all that have any weight. Of equal experts the first comes first.
    Source: section on pathways.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"pathways: threshold={threshold}; 0 to 1 is right")
    layers = [_heaviest(layer, threshold) for layer in gates]
    return [tuple(own) for own in zip(*layers, strict=True)]


def _heaviest(gates: Tensor, threshold: float) -> list[tuple[int, ...]]:
    ordered, experts = gates.double().sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    # A sum that rounding leaves a hair below the threshold has reached it.
    kept = (before < threshold - 1e-12) & (ordered > 0)
    kept[:, :1] = True
    return [tuple(row[own].tolist()) for row, own in zip(experts, kept, strict=True)]


def spelled(pathway: Pathway) -> str:
    """As the paper writes it: experts by commas, layers by hyphens."""
    return "-".join(",".join(map(str, layer)) for layer in pathway)


def pathway_distances(
    one: Sequence[Pathway],
    other: Sequence[Pathway] | None = None,
    unit: Literal["experts", "characters"] = "experts",
) -> Tensor:
    """(N, M) int64: edit distances of every pathway to every other, of `one` where none is given.

    Inserting, deleting and replacing cost 1.
    unit: what is edited. An expert or the boundary of a layer; or, as in the paper's figures, a
        character of `spelled`, under which experts of two digits weigh more.
    """
    spell = spelled if unit == "characters" else _symbols
    words = [spell(pathway) for pathway in one]
    others = words if other is None else [spell(pathway) for pathway in other]
    if not words or not others:
        return torch.zeros(len(words), len(others), dtype=torch.int64)
    return torch.from_numpy(cdist(words, others, scorer=Levenshtein.distance, workers=1)).long()


def _symbols(pathway: Pathway) -> str:
    """One character for each expert and boundary."""
    return chr(_SEPARATOR).join("".join(chr(_FIRST + e) for e in layer) for layer in pathway)


def pathway_distance(
    pathways: Sequence[Pathway], unit: Literal["experts", "characters"] = "experts"
) -> float:
    """The mean distance over pairs of different samples; NaN of fewer than two samples."""
    count = len(pathways)
    if count < 2:
        return float("nan")
    return float(pathway_distances(pathways, unit=unit).sum()) / (count * (count - 1))


def window_pathways(routes: Mapping[str, Routing], length: int) -> list[Pathway]:
    """The pathways of windows of `length` things, which lie one after another in each layer.

    Raises InputError where the things are not whole windows, or a layer has no probabilities.
    """
    gates = []
    for name, routing in routes.items():
        if len(routing) % length:
            raise InputError(f"pathways: {len(routing)} things in {name}, windows of {length}")
        samples = torch.arange(len(routing), device=routing.experts.device) // length
        gates.append(sample_gates(routing, samples))
    return pathways(gates)
