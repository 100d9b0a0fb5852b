"""Which experts of a model are merged into which: a budget over all layers, by what routers did.

Source: MC-SMoE (Li et al. 2023), sections 3.2 and its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.surgery.calibration import RoutingSums

Similarity = Literal["scores", "random", "weights", "rows"]


def budgets(
    usage: Mapping[int, Tensor], mean: float, excluded: Sequence[int] = ()
) -> dict[int, int]:
    """How many experts each layer keeps, `mean` of them on average over layers that are merged.

    usage: (E,) of each layer, shares of its choices. excluded: layers that keep all.
    The most used expert of a layer counts as 1; all layers' shares are sorted together, and those
    above the one with the number of the whole budget are kept. Layers that are used evenly keep
    more. Of equal shares at the threshold none is kept, so there may be fewer.
    Raises InputError where the mean is out of range.
    """
    ranked = {}
    for index, shares in usage.items():
        own = shares.clone()
        own[int(own.argmax())] = 1.0
        ranked[index] = torch.ones_like(own) if index in excluded else own
    merged = [index for index in usage if index not in excluded]
    whole = round(mean * len(merged)) + sum(len(usage[index]) for index in excluded)
    every = torch.cat(list(ranked.values())).sort(descending=True).values
    if not merged or mean < 1 or whole > len(every):
        raise InputError(
            f"merge: {mean:g} experts a layer of {[len(own) for own in usage.values()]} in "
            f"{len(merged)} layers; from 1 to all of them is right"
        )
    if whole == len(every):
        return {index: len(own) for index, own in usage.items()}
    threshold = float(every[whole])
    return {index: int((own > threshold).sum()) for index, own in ranked.items()}


def uniform(usage: Mapping[int, Tensor], mean: int, excluded: Sequence[int] = ()) -> dict[int, int]:
    """The same number of experts in every layer."""
    return {i: len(own) if i in excluded else min(mean, len(own)) for i, own in usage.items()}


def likeness(
    sums: RoutingSums, rows: Tensor, flat: Tensor, by: Similarity, seed: int = 0
) -> Tensor:
    """(E, E): how alike a layer's experts are.

    by: "scores", cosines of raw router scores over all calibrated things (the method); "random";
    "weights", cosines of the experts' flattened weights (E, ·); "rows", of the router's rows.
    """
    if by == "scores":
        return sums.similarity()
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(rows), len(rows), generator=generator, dtype=torch.float64)
    if by not in ("weights", "rows"):
        raise unknown("similarity", by, ("scores", "random", "weights", "rows"))
    vectors = (flat if by == "weights" else rows).double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return vectors @ vectors.T


def groups_of(
    usage: Tensor, kept: int, alike: Tensor, most: int | None = None
) -> tuple[Tensor, list[int]]:
    """The group of each expert, (E,) int64 into the list of dominant experts, and that list.

    usage: (E,). kept: how many are dominant: the most used. alike: (E, E). most: experts in a
    group; a full one takes no more, None for no limit.
    The others join, the more used first, the dominant one that they are most alike.
    Raises InputError when groups of `most` cannot hold all.
    """
    count = len(usage)
    if most is not None and kept * most < count:
        raise InputError(f"merge: {kept} groups of {most} cannot hold {count} experts")
    order = usage.argsort(descending=True, stable=True).tolist()
    dominant = sorted(order[:kept])
    groups = torch.zeros(count, dtype=torch.int64)
    sizes = [1] * kept
    for place, expert in enumerate(dominant):
        groups[expert] = place
    for expert in order[kept:]:
        open_ = [p for p in range(kept) if most is None or sizes[p] < most]
        best = max(open_, key=lambda place: (float(alike[expert, dominant[place]]), -place))
        groups[expert] = best
        sizes[best] += 1
    return groups, dominant


def averaged(
    weights: Sequence[Tensor | None], usage: Tensor, groups: Tensor, dominant: Sequence[int]
) -> list[Tensor | None]:
    """Stacked weights (E, ...) as one expert for each group: (K, ...), averages by usage.

    A group whose members are all unused is its dominant expert. Source: equation 2.
    """
    kept = len(dominant)
    shares = torch.zeros(kept, len(usage), dtype=torch.float64)
    shares[groups, torch.arange(len(usage))] = usage.double()
    totals = shares.sum(1, keepdim=True)
    for place, expert in enumerate(dominant):
        if totals[place] == 0:
            shares[place, expert] = totals[place] = 1.0
    shares = shares / totals
    made: list[Tensor | None] = []
    for part in weights:
        if part is None:
            made.append(None)
            continue
        mixed = torch.empty(kept, *part.shape[1:], dtype=part.dtype, device=part.device)
        for place in range(kept):
            members = (shares[place] > 0).nonzero()[:, 0].tolist()
            if len(members) == 1:  # bit for bit
                mixed[place] = part[members[0]]
                continue
            total = torch.zeros_like(part[0], dtype=torch.float32)
            for expert in members:
                total.add_(part[expert], alpha=float(shares[place, expert]))
            mixed[place] = total
        made.append(mixed)
    return made


def stable_rank(matrix: Tensor) -> float:
    """Σ σ² / max σ² of a matrix. Source: equation 3."""
    if min(matrix.shape) <= 64:
        largest = float(torch.linalg.svdvals(matrix.double()).max())
    else:
        from scipy.sparse.linalg import svds

        values = matrix.float().numpy()
        largest = float(svds(values, k=1, return_singular_vectors=False, random_state=0)[0])
    return float(matrix.float().square().sum(dtype=torch.float64)) / max(largest**2, 1e-300)
