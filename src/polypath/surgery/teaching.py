"""Operations that train a part of a checkpoint, in memory: alignment and unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language import from_pretrained
from polypath.language.reading import encode, windows_of
from polypath.routing import routed_layers
from polypath.surgery.align import AlignConfig, Aligned, align, routers
from polypath.surgery.attribution import Batch, affinity, targets, trainable
from polypath.surgery.checkpoints import BATCH, Reading, check_target, save_changed
from polypath.surgery.layerwise import Told, untold
from polypath.surgery.neighbours import Sample, collate
from polypath.surgery.questions import read_questions
from polypath.surgery.report import Move, Size, Surgery
from polypath.surgery.unlearn import Unlearned, Unlearning, unlearn

HELD_OUT = 5
"""Every so many-th question is only measured."""


def routed(source: Path) -> PreTrainedModel:
    """The model of a folder; raises InputError when it has no routed layers."""
    model = from_pretrained(source)
    if not routed_layers(model):
        raise InputError(f"{source}: {type(model).__name__} has no routed layers")
    return model


def samples_of(source: Path, model: PreTrainedModel, questions: Path, context: int) -> list[Sample]:
    """A file's questions as the model reads them, the ends of those that are longer."""
    size = model.config.get_text_config().vocab_size
    found = []
    for question in read_questions(questions):
        prompt = encode(source, size, question.prompt).ids[-context:]
        answer = encode(source, size, question.answer).ids[:context]
        found.append(Sample(prompt.tolist(), answer.tolist()))
    return found


def align_checkpoint(
    source: Path,
    target: Path,
    questions: Path,
    config: AlignConfig,
    context: int = 256,
    told: Told = untold,
) -> Aligned:
    """Train the routers of a checkpoint's last layers on questions; the rest stays as it is.

    Every fifth question is held out, and only measured.
    """
    check_target(source, target)
    model = routed(source)
    samples = samples_of(source, model, questions, context)
    held = samples[HELD_OUT - 1 :: HELD_OUT]
    used = [own for place, own in enumerate(samples) if place % HELD_OUT != HELD_OUT - 1]

    def read(some: Sequence[Sample]) -> Any:
        told("read a batch")
        return collate(some)

    done = align(model, used, config, held, read)
    save_changed(model, source, target, done)
    return done


def plan_alignment(source: Path, questions: Path, config: AlignConfig, context: int) -> Surgery:
    """What an alignment would train, and how much it would read."""
    model = routed(source)
    parts, size = routers(model, config.layers), Size.of(model)
    samples = samples_of(source, model, questions, context)
    tokens = sum(len(own.prompt) + len(own.answer) for own in samples) / len(samples)
    passes = 3 * config.steps * config.batch + 2 * len(samples)
    note = f"{parts.count():,} numbers would be trained, {parts.count() / size.parameters:.4%}; "
    note += f"about {passes * tokens:,.0f} tokens would be read, of {len(samples)} questions"
    return Surgery("align", {}, size, size, [], notes=[note])


def batches_of(source: Path, model: PreTrainedModel, reading: Reading) -> list[Batch]:
    """A text in batches of windows."""
    size = model.config.get_text_config().vocab_size
    ids = windows_of(source, size, reading.text, reading.windows, reading.context)
    return [{"input_ids": own} for own in ids.split(BATCH)]


@torch.no_grad()
def told_right(model: nn.Module, batches: list[Batch]) -> float:
    """The share of tokens that a model would have said next."""
    right = count = 0
    for batch in batches:
        ids: Tensor = batch["input_ids"]
        said = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
        right += int((said == ids[:, 1:]).sum())
        count += ids[:, 1:].numel()
    return right / max(1, count)


def unlearn_checkpoint(
    source: Path,
    target: Path,
    forget: Reading,
    retain: Reading,
    config: Unlearning,
    told: Told = untold,
) -> Unlearned:
    """Make a checkpoint forget a text in the expert that it engages most.

    Efficacy and utility are the shares of tokens told right, of what is to be forgotten and of what
    is to be kept.
    """
    check_target(source, target)
    model = routed(source)
    gone, kept = (batches_of(source, model, one) for one in (forget, retain))

    def efficacy(own: nn.Module) -> float:
        found = told_right(own, gone)
        told(f"told right {found:.1%} of what is to be forgotten")
        return found

    done = unlearn(model, gone, kept, config, efficacy, lambda own: told_right(own, kept))
    save_changed(model, source, target, done)
    return done


def plan_unlearning(source: Path, forget: Reading, config: Unlearning) -> Surgery:
    """Which expert an unlearning would aim at, and how much of the model it would train."""
    model = routed(source)
    size = Size.of(model)
    found = affinity(model, batches_of(source, model, forget), config.tokens)
    aims = targets(found, config.count, config.within_layer)
    parts = trainable(model, config.scope, aims)
    moves = [
        Move(
            f"{aim.layer}, expert {aim.expert}", f"affinity {aim.affinity:.4f}", "would be trained"
        )
        for aim in aims
    ]
    note = f"{parts.count():,} numbers would be trained, {parts.count() / size.parameters:.3%}"
    return Surgery("unlearn", {}, size, size, moves, notes=[note])
