"""Operations on checkpoint folders: layer by layer where the family allows, else in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language import attach, from_pretrained, save_pretrained
from polypath.language.checkpoint import is_own
from polypath.language.families import decoder_of
from polypath.language.hosting import native_layers, place
from polypath.language.manifest import DESCRIPTION, model_class, read_config
from polypath.language.merged import Merged, described, shrink
from polypath.language.piecewise import CHAINED, Pieces
from polypath.language.reading import windows_of
from polypath.surgery.calibration import Calibration, ChannelSums, calibrate
from polypath.surgery.compress import compressed, shed, split_experts
from polypath.surgery.convert import Method, convert, dense_layers
from polypath.surgery.factorllm import FactorLLM
from polypath.surgery.granular import Granular
from polypath.surgery.layerwise import (
    Told,
    calibrate_pieces,
    convert_folder,
    merge_folder,
    untold,
)
from polypath.surgery.merge import Merge, merge, merge_to_native
from polypath.surgery.readme import ReadMe
from polypath.surgery.recovery import Recovery, recover, score_rows
from polypath.surgery.report import Size, Surgery
from polypath.surgery.slices import DenseLayer
from polypath.surgery.tuning import (
    Tuning,
    next_token,
    teachers_of,
    tune_factored,
    tune_granular,
    tune_pregated,
)

BATCH = 8
"""Windows that a model reads at once."""


@dataclass(frozen=True)
class Reading:
    """The text that an operation looks at.

    text: a file or folder; the standard library's source by default. windows, context: how much.
    """

    text: Path | None = None
    windows: int = 256
    context: int = 512

    def __post_init__(self) -> None:
        if min(self.windows, self.context) < 2:
            raise InputError(
                f"windows={self.windows}, context={self.context}; 2 of each at least are needed"
            )

    def ids(self, folder: Path, more: int = 0) -> Tensor:
        """(N, context + more) int64, as the model of a folder reads it."""
        size = read_config(folder).get_text_config().vocab_size
        return windows_of(folder, size, self.text, self.windows, self.context + more)


def in_pieces(folder: Path) -> bool:
    """Whether a checkpoint can be worked layer by layer."""
    plain = not (folder / DESCRIPTION).exists()
    return plain and read_config(folder).model_type in CHAINED


def steps_of(folder: Path, calibrated: bool, native: bool = False) -> int:
    """How often `told` is told something by an operation on a folder."""
    if not in_pieces(folder) or native:
        return 1 + calibrated
    return 1 + read_config(folder).num_hidden_layers * (1 + calibrated)


def blank_of(folder: Path) -> PreTrainedModel:
    """The model of a folder without memory for its parameters."""
    if (folder / DESCRIPTION).exists():
        return from_pretrained(folder).to("meta")
    config = read_config(folder)
    with torch.device("meta"):
        return model_class(folder, config)._from_config(config)


def check_target(source: Path, target: Path) -> None:
    """Raise InputError where a checkpoint would be written over what it is made of."""
    if source.resolve() == target.resolve():
        raise InputError(f"{target} is the checkpoint itself; another folder is right")


Choice = Callable[[Mapping[str, Calibration]], Method]
"""From calibrations by the name of their text to the method that converts."""


def convert_checkpoint(
    source: Path,
    target: Path,
    method: Choice,
    texts: Mapping[str, Reading],
    told: Told = untold,
) -> Surgery:
    """Convert a checkpoint's dense layers into another folder; the source stays as it is."""
    check_target(source, target)
    read = {name: reading.ids(source).split(BATCH) for name, reading in texts.items()}
    if in_pieces(source):
        seen = calibrate_pieces(Pieces(source), read, told) if read else {}
        done = convert_folder(Pieces(source), target, method(seen), told)
    else:
        model = from_pretrained(source)
        done = convert(model, method({name: calibrate(model, own) for name, own in read.items()}))
        told("converted")
        save_changed(model, source, target, done)
    return done


def plan_conversion(source: Path, method: Choice, domains: Sequence[str]) -> Surgery:
    """What a conversion would do, from the shapes alone; channels are taken to differ nowhere."""
    blank = blank_of(source)
    decoder = decoder_of(blank)
    dense = dense_layers(decoder)
    chosen = method({name: _even(dense) for name in domains})
    chosen.check(dense)
    before = Size.of(blank)
    with torch.device("meta"):
        place(decoder, chosen.routed(blank, dense), dense)
    return Surgery(chosen.name, {}, before, Size.of(blank), [])


def _even(dense: Mapping[int, DenseLayer]) -> Calibration:
    sums = {i: ChannelSums(1, torch.ones(layer.width).double()) for i, layer in dense.items()}
    return Calibration(dense=sums)


def merge_checkpoint(
    source: Path, target: Path, config: Merge, reading: Reading, native: bool, told: Told = untold
) -> Surgery:
    """Merge a checkpoint's experts into another folder; the source stays as it is.

    native: as a checkpoint of its own architecture, see `merge_to_native`.
    """
    check_target(source, target)
    plan_merge(source, config)  # what cannot be merged is told before anything is read
    read = reading.ids(source).split(BATCH)
    if in_pieces(source) and not native:
        return merge_folder(Pieces(source), target, read, config, told)
    model = from_pretrained(source)
    seen = calibrate(model, read)
    told("calibrated")
    if native:
        model, done = merge_to_native(model, seen, config)
    else:
        done = merge(model, seen, config)
    told("merged")
    save_changed(model, source, target, done)
    return done


def plan_merge(source: Path, config: Merge) -> Surgery:
    """What a merge would leave, from the shapes alone; layers are taken to keep alike."""
    blank = blank_of(source)
    decoder = decoder_of(blank)
    if native_layers(decoder):
        attach(blank)
    for index in config.excluded:
        if index not in decoder.routed():
            raise InputError(f"merge: excluded layer {index} is none of {sorted(decoder.routed())}")
    if not decoder.routed():
        raise InputError(f"{source}: {type(blank).__name__} has no experts to merge")
    for index, layer in decoder.routed().items():
        described(decoder.host.origins.get(index), layer, index)
    before = Size.of(blank)
    with torch.device("meta"):
        for index, layer in decoder.routed().items():
            if index not in config.excluded:
                shrink(layer, Merged("adopted", max(1, round(config.experts))))
    return Surgery("merge", {}, before, Size.of(blank), [])


def compress_checkpoint(
    folder: Path,
    teacher: Path,
    rank: int,
    kept: float,
    steps: int,
    reading: Reading,
    excluded: Sequence[int],
    told: Told,
) -> Surgery:
    """Write a merged checkpoint's experts small, in place, taught by what it was made of.

    steps: of recovery; 0 chooses rows by gradients alone, without training. excluded: layers whose
    experts stay whole.
    """
    model, whole = from_pretrained(folder), from_pretrained(teacher)
    before = Surgery.read(folder)
    split_experts(model, rank, excluded)
    ids = reading.ids(teacher, more=1)
    stream = shuffled(ids, 0)
    if steps:
        recovery = Recovery(steps, kept=kept, warmup=min(16, steps // 5 + 1))
        recover(model, whole, stream, _logits, _loss, recovery, lambda step, loss: told("taught"))
    else:
        score_rows(model, stream, max(1, len(ids) // BATCH), _logits, _loss, kept)
    shed(model)
    rows = sum(len(one.kept) for one in compressed(model).values())
    note = f"matrices of rank {rank} beside {rows:,} whole rows, {steps} steps of recovery"
    done = replace(before, after=Size.of(model), notes=[*before.notes, note])
    save_changed(model, teacher, folder, done)
    return done


def _logits(model: Any, batch: Tensor) -> Tensor:
    return model(input_ids=batch[:, :-1], use_cache=False).logits


def _loss(logits: Tensor, batch: Tensor) -> Tensor:
    wanted = batch[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted)


def shuffled(ids: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of windows (N, L) in an order that a seed draws, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from ids[torch.randperm(len(ids), generator=generator)].split(BATCH)


def tune_checkpoint(
    source: Path,
    target: Path,
    method: Method,
    tuning: Tuning,
    texts: Mapping[str, Reading],
    told: Told = untold,
) -> Surgery:
    """Train what `convert_checkpoint` wrote in the way of its method, in memory."""
    model = from_pretrained(target)
    before = Surgery.read(target)
    ids = torch.cat([reading.ids(source, more=1) for reading in texts.values()])
    stream = shuffled(ids, 0)
    held = ids[:: max(1, len(ids) // BATCH)][:BATCH]

    def after(step: int, loss: float) -> None:
        told(f"tuned, loss {loss:.3f}")

    start = _held_loss(model, held)
    if isinstance(method, FactorLLM):
        teachers, kind = teachers_of(from_pretrained(source))
        tune_factored(model, teachers, kind, stream, tuning, after=after)
    elif isinstance(method, ReadMe):
        tune_pregated(model, from_pretrained(source), method.masks, stream, tuning, after=after)
    elif isinstance(method, Granular):
        head = model.get_output_embeddings()
        beside = [] if head is None else list(head.parameters())
        tune_granular(model, lambda step: next_token(model, next(stream)), tuning, beside, after)
    end = _held_loss(model, held)
    note = f"tuned for {tuning.steps} steps: {start:.3f} to {end:.3f} nats a token of its own text"
    done = replace(before, notes=[*before.notes, note])
    save_changed(model, source, target, done)
    return done


@torch.no_grad()
def _held_loss(model: PreTrainedModel, batch: Tensor) -> float:
    return float(next_token(model.eval(), batch))


def save_changed(model: PreTrainedModel, source: Path, target: Path, done: Surgery) -> None:
    """Write a changed model, its report, and what else the source has, such as a tokenizer."""
    save_pretrained(model, target)
    done.save(target)
    for path in source.iterdir():
        if path.is_file() and not is_own(path.name) and not (target / path.name).exists():
            shutil.copy2(path, target / path.name)
