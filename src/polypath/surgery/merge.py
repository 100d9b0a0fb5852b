"""Many experts to few: M-SMoE, merging by what routers did.

Source: MC-SMoE (Li et al. 2023), arXiv 2310.01334, algorithm 1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language import SubModel, attach, extract
from polypath.language.checkpoint import save_here
from polypath.language.families import Decoder, decoder_of
from polypath.language.hosting import native_layers
from polypath.language.merged import Merged, described, shrink
from polypath.routing import MoE
from polypath.surgery.alignment import align
from polypath.surgery.banks import stacks, write
from polypath.surgery.calibration import Calibration, RoutingSums
from polypath.surgery.grouping import (
    Similarity,
    averaged,
    budgets,
    groups_of,
    likeness,
    stable_rank,
    uniform,
)
from polypath.surgery.report import Move, Size, Surgery


@dataclass(frozen=True)
class Merge:
    """How experts are merged.

    experts: K̄, what a layer keeps on average. excluded: layers that keep all.
    layers: "adaptive", one budget for all layers; "uniform", the same for each.
    similarity: who is alike, see `likeness`. weighting: "usage", "uniform", or "dominant": the most
    used of a group as it is (redirect-only). align: order hidden units as the first expert's.
    most: experts in a group, at most. seed: of random similarity.
    """

    experts: float
    excluded: tuple[int, ...] = ()
    layers: Literal["adaptive", "uniform"] = "adaptive"
    similarity: Similarity = "scores"
    weighting: Literal["usage", "uniform", "dominant"] = "usage"
    align: bool = True
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("layers", ("adaptive", "uniform")),
            ("similarity", ("scores", "random", "weights", "rows")),
            ("weighting", ("usage", "uniform", "dominant")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"merge: {name}={getattr(self, name)!r}; one of {known} is right")


@dataclass(frozen=True, eq=False)
class Fusion:
    """What one layer becomes. groups: (E,) int64. dominant: of each group. weights: (K, ...)."""

    groups: Tensor
    dominant: list[int]
    weights: list[Tensor | None]
    move: Move


def plan(sums: Mapping[int, RoutingSums], config: Merge) -> dict[int, int]:
    """How many experts each layer keeps."""
    usage = {index: own.usage() for index, own in sums.items()}
    for index in config.excluded:
        if index not in usage:
            raise InputError(f"merge: excluded layer {index} is not routed; {sorted(usage)} are")
    if config.layers == "uniform":
        return uniform(usage, round(config.experts), config.excluded)
    return budgets(usage, config.experts, config.excluded)


@torch.no_grad()
def fuse(index: int, layer: MoE, sums: RoutingSums, kept: int, config: Merge) -> Fusion:
    """One layer's experts as `kept` ones; in the layer only hidden units change their order."""
    weights = stacks(layer.experts)
    usage = sums.usage()
    if len(usage) != len(weights[2]):  # type: ignore[arg-type]
        raise InputError(f"merge: layer {index} has other experts than were calibrated")
    if config.align and kept < len(usage):
        align(weights)
        write(layer.experts, weights)
    w_in = cast(Tensor, weights[0])
    rows = cast(Any, layer.router).scorer.weight
    alike = likeness(sums, rows, w_in.flatten(1), config.similarity, config.seed + index)
    groups, dominant = groups_of(usage, kept, alike, config.most)
    made = averaged(weights, _shares(usage, dominant, config), groups, dominant)
    before = sum(stable_rank(one) for one in w_in) / len(w_in)
    after = sum(stable_rank(one) for one in cast(Tensor, made[0])) / kept
    members: list[list[int]] = [[] for _ in dominant]
    for expert, group in enumerate(groups.tolist()):
        members[group].append(expert)
    told = "; ".join(
        f"{lead} ← {', '.join(str(e) for e in own if e != lead)}" if len(own) > 1 else str(lead)
        for lead, own in zip(dominant, members, strict=True)
    )
    move = Move(
        f"layer {index}",
        f"{len(usage)} experts",
        f"{kept}: {told}; stable rank {before:.2f} → {after:.2f}",
        kept / len(usage),
    )
    return Fusion(groups, dominant, made, move)


def _shares(usage: Tensor, dominant: list[int], config: Merge) -> Tensor:
    if config.weighting == "usage":
        return usage
    if config.weighting == "uniform":
        return torch.ones_like(usage)
    return torch.zeros_like(usage).index_fill(0, torch.tensor(dominant), 1.0)


def put(decoder: Decoder, index: int, fusion: Fusion) -> None:
    """Give a layer its merged experts, behind a map from the ids that its router chooses."""
    layer, origin = decoder.routed()[index], decoder.host.origins.get(index)
    if len(fusion.dominant) == len(fusion.groups):
        return
    merged = Merged(described(origin, layer, index), len(fusion.dominant))
    device = next(layer.parameters()).device
    shrink(layer, merged, fusion.groups)
    layer.experts.to(device)
    write(cast(Any, layer.experts).bank, fusion.weights)
    decoder.host.origins[index] = merged


def fusions(model: PreTrainedModel, calibration: Calibration, config: Merge) -> dict[int, Fusion]:
    """What every routed layer of a model becomes; nothing is changed but that experts are adopted.

    Raises InputError where there are no experts, or none that were calibrated.
    """
    decoder = decoder_of(model)
    if native_layers(decoder):
        attach(model)
    routed = decoder.routed()
    if not routed or set(routed) != set(calibration.routed):
        raise InputError(
            f"merge: layers {sorted(routed)} are routed, {sorted(calibration.routed)} were "
            "calibrated; calibrate(attach(model), batches) first"
        )
    for index, layer in routed.items():  # told before anything is changed
        described(decoder.host.origins.get(index), layer, index)
    counts = plan(calibration.routed, config)
    return {
        index: fuse(index, layer, calibration.routed[index], counts[index], config)
        for index, layer in routed.items()
    }


def merge(model: PreTrainedModel, calibration: Calibration, config: Merge) -> Surgery:
    """Merge a model's experts in place; its routers choose and weigh as they did.

    Saved by polypath: no checkpoint of plain transformers has fewer experts than ids.
    """
    began = time.perf_counter()
    before = Size.of(model)
    made = fusions(model, calibration, config)
    decoder = decoder_of(model)
    for index, fusion in made.items():
        put(decoder, index, fusion)
    save_here(model)
    return merge_report(config, before, model, [made[i].move for i in made], began)


def merge_to_native(
    model: PreTrainedModel, calibration: Calibration, config: Merge
) -> tuple[PreTrainedModel, Surgery]:
    """A new model of the checkpoint's own architecture with fewer experts; the old one is used up.

    Its routers keep only the rows of dominant experts, so that things whose expert was another
    choose anew: it saves as a plain checkpoint and is no longer the paper's method, which leaves
    routers alone. Every layer keeps as many (`layers="uniform"`).
    """
    began = time.perf_counter()
    before = Size.of(model)
    config = replace(config, layers="uniform", excluded=())
    made = fusions(model, calibration, config)
    decoder = decoder_of(model)
    for index, fusion in made.items():
        bank = decoder.routed()[index].experts
        whole = stacks(bank)
        for part, new in zip(whole, fusion.weights, strict=True):
            if part is not None:
                part[fusion.dominant] = cast(Tensor, new)
        write(bank, whole)
    kept = {index: tuple(fusion.dominant) for index, fusion in made.items()}
    every = tuple(range(len(decoder.layers)))
    small = extract(model, SubModel(every, kept))
    note = "routers keep the rows of dominant experts alone"
    moves = [fusion.move for fusion in made.values()]
    return small, merge_report(config, before, small, moves, began, (note,))


def merge_report(
    config: Merge,
    before: Size,
    model: PreTrainedModel,
    moves: Sequence[Move],
    began: float,
    notes: tuple[str, ...] = (),
) -> Surgery:
    """What a merge did, in the form of all operations."""
    return Surgery(
        "merge",
        {**asdict(config), "excluded": list(config.excluded)},
        before,
        Size.of(model),
        moves,
        notes=notes,
        seconds=time.perf_counter() - began,
    )
