"""Operations on checkpoints that are larger than memory: a layer at a time, from disk to disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polypath.language import attach
from polypath.language.adopt import Native
from polypath.language.checkpoint import WEIGHTS, is_own
from polypath.language.families import decoder_of
from polypath.language.folders import replaced
from polypath.language.hosting import native_layers, place
from polypath.language.manifest import layers_of, write_description
from polypath.language.merged import Merged, shrink
from polypath.language.piecewise import Pieces, forget
from polypath.language.shards import ShardWriter
from polypath.language.stacks import build_stack
from polypath.routing import MoE
from polypath.surgery.calibration import Calibration, calibrating
from polypath.surgery.convert import Cut, Method, dense_layers, exactness, report
from polypath.surgery.merge import Fusion, Merge, fuse, merge_report, plan
from polypath.surgery.report import Check, Move, Size, Surgery
from polypath.surgery.slices import DenseLayer, Slices, probes

Told = Callable[[str], None]
"""Is told what was done, in a few words, after every layer."""

Values = Callable[[int, Sequence[str]], Iterator[Tensor]]
"""The new tensors of the feed-forward part of a layer, by its index and their names in it."""


def untold(line: str) -> None:
    """For those who want to be told nothing."""


@torch.no_grad()
def calibrate_pieces(
    pieces: Pieces, texts: Mapping[str, Sequence[Tensor]], told: Told = untold
) -> dict[str, Calibration]:
    """What a checkpoint does with each text, batches of token ids (B, L); see `calibrate`.

    In memory at a time: one layer, and the hidden states of all texts.
    """
    hidden = {name: pieces.embedded(batches) for name, batches in texts.items()}
    found = {name: Calibration() for name in texts}
    for index in range(len(pieces.decoder.layers)):
        _calibrate_layer(pieces, index, hidden, found)
        told(f"calibrated layer {index}")
    return found


def _calibrate_layer(
    pieces: Pieces,
    index: int,
    hidden: Mapping[str, list[Tensor]],
    found: Mapping[str, Calibration],
) -> None:
    model = pieces.layer_model(index)
    if native_layers(decoder_of(model)):
        attach(model)
    for name, states in hidden.items():
        with calibrating(model) as seen:
            pieces.through(model, states)
        for own in seen.routed.values():
            found[name].routed[index] = own
        for channels in seen.dense.values():
            found[name].dense[index] = channels
    forget(model)  # hooks and modules refer to each other, and would be cleared up too late


@torch.no_grad()
def convert_folder(pieces: Pieces, target: Path, method: Method, told: Told = untold) -> Surgery:
    """As `convert`, of a checkpoint folder into another, whose source stays as it is.

    In memory at a time: one feed-forward layer and a part of its slices. The target appears when
    everything is written, and not before. Raises InputError as `convert` and `replaced` do.
    """
    began = time.perf_counter()
    blank, decoder = pieces.blank, pieces.decoder
    dense = dense_layers(decoder)
    method.check(dense)
    before = Size.of(blank)
    homes = {index: _homes(pieces, index, layer) for index, layer in dense.items()}
    routed = method.routed(blank, dense)
    with torch.device("meta"):
        place(decoder, routed, dense)
    starts = _routers(pieces, method, routed, list(dense))
    cuts: dict[int, Cut] = {}
    checks: list[Check] = []

    def values(index: int, names: Sequence[str]) -> Iterator[Tensor]:
        layer = dense[index]
        for path, module in homes[index].items():
            pieces.fill(module, path)
        cuts[index] = method.cut(index, layer)
        made = _Made(layer, cuts[index], starts[index])
        for name in names:
            yield made.take(name)
        checks.extend(exactness(index, made.slices, made.whole, cuts[index]))
        for module in homes[index].values():
            forget(module)

    with replaced(target, is_own) as draft:
        _write(pieces, draft, list(dense), values, told)
        done = report(method, before, Size.of(blank), dense, cuts, checks, began)
        done.save(draft)
    return done


def _homes(pieces: Pieces, index: int, dense: DenseLayer) -> dict[str, nn.Module]:
    """The modules of a dense layer by their dotted names in the model."""
    names = {id(module): name for name, module in pieces.blank.named_modules()}
    modules = [place.weight.module for place in dense.projections.values()]
    return {names[id(module)]: module for module in modules}


def _routers(
    pieces: Pieces, method: Method, routed: Any, indices: Sequence[int]
) -> dict[int, dict[str, Tensor]]:
    """The first values of the routers of layers, by their names in the router."""
    # For real, with experts one wide.
    narrow = replace(routed, hidden=1, shared_hidden=0)
    layers = build_stack(narrow, pieces.blank.config.hidden_size, 1, len(indices))
    table = pieces.blank.get_input_embeddings()
    pieces.fill(table, pieces.table)
    for index, layer in zip(indices, layers, strict=True):
        method.start(pieces.blank, index, layer)
    forget(table)
    found = {}
    for index, layer in zip(indices, layers, strict=True):
        state = layer.router.state_dict().items()
        found[index] = {
            name: value.to(pieces.dtype) if value.is_floating_point() else value
            for name, value in state
        }
    return found


class _Made:
    """The new tensors of one converted layer, made when they are asked for.

    Those inside the activation come first; what they were made of is forgotten after them.
    """

    def __init__(self, dense: DenseLayer, cut: Cut, router: Mapping[str, Tensor]) -> None:
        self.dense = dense
        self.router = router
        self.whole = dense.output(probes(dense))
        self.slices = Slices(dense, cut.sets, cut.bias)
        self.shared = None if cut.shared is None else Slices(dense, cut.shared)
        self.bias: Tensor | None = None

    def take(self, name: str) -> Tensor:
        """The tensor that a routed layer calls so."""
        part, _, own = name.partition(".")
        if part == "router":
            return self.router[own]
        if own.endswith("_bias"):
            assert self.bias is not None
            return self.bias
        slices = self.shared if part == "shared" else self.slices
        assert slices is not None
        if "down" in own:
            for inner in self.dense.maps():  # all that they are needed for is made
                forget(self.dense.projections[inner].weight.module)
            made, self.bias = slices.outer()
        else:
            made, self.bias = slices.inner()
        return made[0] if part == "shared" else made


def _order(name: str) -> int:
    """Routers, then what is inside of the activation, then what is outside."""
    if name.startswith("router."):
        return 0
    return 2 if ".down" in name else 1


@torch.no_grad()
def merge_folder(
    pieces: Pieces,
    target: Path,
    batches: Sequence[Tensor],
    config: Merge,
    told: Told = untold,
) -> Surgery:
    """As `merge`, of a checkpoint folder into another, whose source stays as it is.

    batches: token ids (B, L) each, to see what routers do. In memory at a time: one layer's
    experts, and those that they become.
    """
    began = time.perf_counter()
    sums = calibrate_pieces(pieces, {"text": batches}, told)["text"].routed
    blank, decoder = pieces.blank, pieces.decoder
    attach(blank)
    before = Size.of(blank)
    counts = plan(sums, config)
    layers = decoder.routed()
    moves: list[Move] = []
    wholes = {i: MoE(own.router, own.experts, own.shared) for i, own in layers.items()}
    natives: dict[int, Native] = {index: decoder.host.origins[index] for index in layers}
    for index, layer in layers.items():
        if counts[index] < len(sums[index].chosen):
            decoder.host.origins[index] = Merged("adopted", counts[index])
            with torch.device("meta"):
                shrink(layer, decoder.host.origins[index])

    def values(index: int, names: Sequence[str]) -> Iterator[Tensor]:
        whole = wholes[index]
        home = f"{pieces.prefix}.{index}.{decoder.family.mlp}"
        pieces.fill(whole, home, natives[index].name)
        fusion = fuse(index, whole, sums[index], counts[index], config)
        moves.append(fusion.move)
        state = dict(whole.state_dict())
        if counts[index] < len(fusion.groups):
            state = {name: value for name, value in state.items() if "experts." not in name}
            state |= _fused(whole.experts, fusion)
            forget(whole.experts)
        for name in names:
            yield state.pop(name)
        forget(whole)

    with replaced(target, is_own) as draft:
        _write(pieces, draft, list(layers), values, told)
        done = merge_report(config, before, blank, moves, began)
        done.save(draft)
    return done


def _fused(bank: Any, fusion: Fusion) -> dict[str, Tensor]:
    """Merged experts under the names that they have in a layer."""
    names = (bank.inner, f"{bank.inner}_bias", "down_proj", "down_proj_bias")
    named = zip(names, fusion.weights, strict=True)
    made = {f"experts.bank.{name}": value for name, value in named if value is not None}
    return {**made, "experts.groups": fusion.groups}


def _write(pieces: Pieces, draft: Path, layers: Sequence[int], values: Values, told: Told) -> None:
    """Write a checkpoint whose `layers` have new feed-forward parts, all else as it was."""
    decoder = pieces.decoder
    outside = pieces.names()
    writer = ShardWriter(draft, len(outside) + len(decoder.layers))
    for name in outside:
        writer.add({name: pieces.shape(name)}, (pieces.tensor(own) for own in [name]))
    told("copied what lies outside of the layers")
    known: set[int] = set()
    for index in range(len(decoder.layers)):
        before = f"{pieces.prefix}.{index}."
        home = f"{before}{decoder.family.mlp}."
        own: dict[str, Tensor] = {}
        for name, tensor in pieces.blank.state_dict(keep_vars=True).items():
            if name.startswith(before) and id(tensor) not in known:
                own[name] = tensor
        known |= {id(tensor) for tensor in own.values()}
        new = sorted((n for n in own if index in layers and n.startswith(home)), key=_order)
        rest = [name for name in own if name not in new]
        like = {name: own[name] for name in [*rest, *new]}
        made = values(index, [name.removeprefix(home) for name in new]) if new else iter(())
        writer.add(like, chain((pieces.like(name, own[name]) for name in rest), made))
        told(f"wrote layer {index}")
    writer.close()
    for path in pieces.folder.iterdir():
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in WEIGHTS):
            shutil.copy2(path, draft / path.name)
    write_description(draft, layers_of(decoder))
