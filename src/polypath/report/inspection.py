"""The page of a checkpoint: where the tokens of a text go in it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.diagnosis import (
    dependence,
    fluctuation,
    imbalance,
    layer_couplings,
    mean_entropy,
    noise_on_routers,
    pathway_distances,
    spelled,
    window_pathways,
)
from polypath.diagnosis.fluctuation import NOISE
from polypath.errors import InputError
from polypath.language import from_pretrained, kinds_of, read_corpus
from polypath.language.reading import encode
from polypath.report.metrics import layer_labels
from polypath.report.outcome import Cell, Outcome, Table
from polypath.report.routes import Text, explorer, flow, kind_maps, kind_table, load_map
from polypath.routing import Routing, record, routed_layers
from polypath.training.run import commit, machine


class Tokens(NamedTuple):
    """A text as a model reads it: ids (T,) int64, what each stands for, and its kind."""

    ids: Tensor
    texts: list[str]
    kinds: list[str]


def inspect(
    folder: Path, text: Path | None = None, tokens: int = 4096, context: int = 256
) -> Outcome:
    """Tables and figures of the routes that a text takes through the checkpoint in `folder`.

    text: a file or folder; the standard library's source by default.
    tokens: how many of the text's validation part are read, in windows of `context`.
    Raises InputError for a broken checkpoint, one without routed layers, a text that is too short,
    or a vocabulary that nothing says how to read.
    """
    began = time.perf_counter()
    if context < 1 or tokens < context:
        raise InputError(f"tokens={tokens}, context={context}; tokens ≥ context ≥ 1 is needed")
    model = from_pretrained(folder)
    if not routed_layers(model):
        raise InputError(f"{folder}: {type(model).__name__} has no routed layers to look at")
    read = read_tokens(folder, model.config.vocab_size, text, tokens // context * context)
    count = len(read.ids) // context * context
    if count == 0:
        raise InputError(f"the text has {len(read.ids)} tokens, fewer than context={context}")
    read = Tokens(read.ids[:count], read.texts[:count], read.kinds[:count])
    layers, bits = _routes(model, read.ids.view(-1, context))
    with noise_on_routers(model):
        noisy, _ = _routes(model, read.ids.view(-1, context))
    words = Text(f"{count} tokens", read.texts, read.kinds)
    return Outcome(
        recipe=f"inspect {folder.name}",
        commit=commit(),
        machine=machine(),
        seeds=[],
        seconds=time.perf_counter() - began,
        tables=[
            layer_table(layers, bits),
            steadiness_table(model, layers, noisy),
            *pathway_tables(layers, context),
            kind_table(layers, read.kinds),
        ],
        claims=[],
        figures=[
            load_map(layers),
            *([flow(layers)] if len(layers) > 1 else []),
            kind_maps(layers, read.kinds),
            explorer(layers, [words]),
        ],
    )


def read_tokens(folder: Path, vocabulary: int, text: Path | None, limit: int) -> Tokens:
    """The first `limit` tokens of the text's validation part, by the folder's own tokenizer.

    Without a tokenizer.json the ids are bytes, where the vocabulary has room for them.
    """
    part = read_corpus(text, None if text is not None else 80 * limit).valid
    kinds = kinds_of(part.documents)
    ids, spans = encode(folder, vocabulary, part.text, limit)
    return Tokens(
        ids, [part.text[a:b] for a, b in spans], [_kind(part.text, kinds, s) for s in spans]
    )


def _kind(text: str, kinds: list[str], span: tuple[int, int]) -> str:
    """The kind of the first character that is no white space, if any."""
    start, end = span
    seen = (place for place in range(start, end) if not text[place].isspace())
    return kinds[min(next(seen, start), len(kinds) - 1)]


@torch.no_grad()
def _routes(model: PreTrainedModel, windows: Tensor) -> tuple[dict[str, Routing], float]:
    """Each layer's routing of the windows (N, length), and the model's loss in bits a token."""
    nats = 0.0
    with record(model, device="cpu") as routes:
        for batch in windows.split(16):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            nats += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
                )
            )
    predicted = max(1, windows[:, 1:].numel())
    return routes.joined(), nats / predicted / math.log(2)


def layer_table(layers: Mapping[str, Routing], bits: float) -> Table:
    """How every layer routes, and how much its experts say about those of the layer above."""
    names = layer_labels(list(layers))
    generator = torch.Generator().manual_seed(0)
    tied = [dependence(a, b, generator) for a, b in pairwise(layers.values())]
    rows: list[list[Cell]] = []
    for number, (name, routing) in enumerate(layers.items()):
        scored = routing.probabilities is not None
        rows.append(
            [
                names[name],
                routing.num_experts,
                float(routing.count().float().mean()),
                imbalance(routing),
                int((routing.load() == 0).sum()),
                mean_entropy(routing) / math.log(max(2, routing.num_experts)) if scored else None,
                *(tied[number] if number < len(tied) else (None, None)),
            ]
        )
    return Table(
        "How the layers route",
        [
            "layer",
            "experts",
            "per token",
            "imbalance",
            "idle",
            "entropy",
            "tied to next",
            "by chance",
        ],
        rows,
        note=f"The model's loss on this text is {bits:.2f} bits a token. Imbalance: what the "
        "busiest expert has above the mean load, in means. Entropy: of the gate, 1 when even. "
        "Tied to next: normalised mutual information of a token's experts here and at the next "
        "layer; by chance: the same with the tokens of the next layer shuffled.",
    )


def steadiness_table(
    model: PreTrainedModel, layers: Mapping[str, Routing], noisy: Mapping[str, Routing]
) -> Table:
    """How little it takes to send tokens elsewhere, and how rows and experts hold together."""
    names, couplings = layer_labels(list(layers)), layer_couplings(model)
    rows: list[list[Cell]] = []
    for name, routing in layers.items():
        moved, held = fluctuation(routing, noisy[name]), couplings.get(name)
        coupled = (held.strength, float(held.bound.mean())) if held else (None, None)
        rows.append([names[name], moved.first, moved.any, *coupled])
    return Table(
        "How steady they are",
        ["layer", "another first", "another set", "α*", "ε"],
        rows,
        note="Tokens whose heaviest expert, or whose set of experts, changes when routers see "
        f"noise of {100 * NOISE:g} % of their input's length. α*: 1 or less where every router's "
        "row excites its own expert most. ε: how far apart the rows lie.",
    )


def pathway_tables(layers: Mapping[str, Routing], context: int) -> list[Table]:
    """How far apart the ways of the windows are; none where a layer has no probabilities."""
    if any(routing.probabilities is None for routing in layers.values()):
        return []
    found = window_pathways(layers, context)
    distances = pathway_distances(found).double()
    pairs = max(1, len(found) * (len(found) - 1))
    mean = float(distances.sum()) / pairs
    far = distances.sum(1) / max(1, len(found) - 1)
    ends = {"most usual": int(far.argmin()), "most unusual": int(far.argmax())}
    return [
        Table(
            "Pathways",
            ["window", "number", "distance to the others", "its experts"],
            [[name, at, float(far[at]), spelled(found[at])] for name, at in ends.items()],
            note=f"Of {len(found)} windows of {context} tokens, {mean:.1f} edits apart in the "
            "mean. A window's experts in each layer are those that hold 70 % of its gate, the "
            "heaviest first; a hyphen stands between layers.",
        )
    ]
