"""Three streams under one backbone whose routers are not told which is which.

Text as bytes, 8 × 8 digits as 64 grey levels, sums of sinusoids as 64 quantised samples; each with
tokens of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from polypath.diagnosis import chance_overlap, stream_usage, usage_entropy, usage_overlap
from polypath.language import RoutedLayers, attach, read_corpus
from polypath.recipes.trials import Facts
from polypath.report import Claim, Table, judge
from polypath.report.figures import Curves
from polypath.report.statistics import series
from polypath.routing import Routing, given, losses, record, update_biases
from polypath.training.interrupt import Interrupted
from polypath.training.optimisers import adamw, cosine_schedule
from polypath.training.parts import Reporter

STREAMS = ("text", "images", "audio")
PAIRS = tuple(f"{a} and {b}" for a, b in combinations(STREAMS, 2))
LENGTH, BYTES, GREYS, LEVELS = 64, 256, 16, 32
VOCABULARY = BYTES + GREYS + LEVELS
EACH, TESTED, STRIDE = 8, 64, 10
"""Windows of a stream in a batch, and in the test; steps between reports."""


def windows(data: Path | None, seed: int) -> list[Tensor]:
    """(N, LENGTH) int64 of each stream, in the order of STREAMS; the last TESTED are to test."""
    text = read_corpus(data, 600_000).train.text.encode()
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    order = torch.Generator().manual_seed(seed)
    read = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return [read[torch.randperm(len(read), generator=order)], _digits(order), _audio(order)]


def _digits(order: torch.Generator) -> Tensor:
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().data).long().clamp_max(GREYS - 1)
    return BYTES + pixels[torch.randperm(len(pixels), generator=order)]


def _audio(order: torch.Generator, count: int = 4096) -> Tensor:
    """Three sinusoids each, of random pitch and phase, quantised evenly."""
    places = torch.arange(LENGTH)[None, None]
    pitch = 0.05 + 0.6 * torch.rand(count, 3, 1, generator=order)
    phase = 6.2832 * torch.rand(count, 3, 1, generator=order)
    wave = (pitch * places + phase).sin().mean(1)
    return BYTES + GREYS + ((wave + 1) / 2 * LEVELS).long().clamp(0, LEVELS - 1)


def backbone(routed: RoutedLayers, layers: int) -> PreTrainedModel:
    """A decoder over the tokens of all streams."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.06,
        tie_word_embeddings=True,
    )
    return attach(LlamaForCausalLM(config), routed)


def fit(
    routed: RoutedLayers, layers: int, steps: int, data: Path | None, seed: int, reporter: Reporter
) -> tuple[Facts, str]:
    """Train one backbone on equal parts of all streams; see `measured`."""
    streams = windows(data, seed)
    torch.manual_seed(seed)
    model = backbone(routed, layers).train()
    optimiser = adamw(model, 3e-3, 0.1)
    order = torch.Generator().manual_seed(seed)
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        parts = [own[torch.randint(len(own) - TESTED, (EACH,), generator=order)] for own in streams]
        loss = advance(model, torch.cat(parts), step)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * cosine_schedule(step + 1, steps, min(20, steps))
        optimiser.step()
        optimiser.zero_grad()
        update_biases(model)
        seconds.append(time.perf_counter() - began)
        if (step + 1) % STRIDE == 0 or step + 1 == steps:
            reporter.advance(loss, len(STREAMS) * EACH * LENGTH / median(seconds))
            if reporter.stop():
                raise Interrupted
    facts = measured(model.eval(), [own[-TESTED:] for own in streams], seed)
    return facts, f"{loss:.3f} nats per token"


def advance(model: PreTrainedModel, batch: Tensor, step: int) -> float:
    """Gradients of one step; its loss in nats per token."""
    with given(step=step):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    (loss + sum(losses(model).values())).backward()
    return float(loss.detach())


@torch.no_grad()
def measured(model: PreTrainedModel, streams: list[Tensor], seed: int) -> Facts:
    """How each layer serves the streams of test windows, and whether labels of them matter.

    usage: (layer, stream, expert) shares of choices. entropy: (layer, stream), 1 when even.
    overlap: (layer, pair of streams), see `usage_overlap`. told: how far logits move when the
    streams' labels are among what routers may read, and when they are drawn at random.
    """
    batch = torch.cat(streams)
    labels = torch.arange(len(streams)).repeat_interleave(len(streams[0]) * LENGTH)
    with record(model) as routes:
        logits = model(input_ids=batch, use_cache=False).logits
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    told = 0.0
    for known in (labels, shuffled):
        with given(modality=known):
            again = model(input_ids=batch, use_cache=False).logits
        told = max(told, float((again - logits).abs().max()))
    return {"told": told} | by_layer(routes.joined(), labels)


def by_layer(layers: Mapping[str, Routing], labels: Tensor) -> Facts:
    """Usage, entropy and overlap of every layer, from below."""
    usage = [stream_usage(routing, labels, len(STREAMS)) for routing in layers.values()]
    pairs = list(combinations(range(len(STREAMS)), 2))
    overlaps = [usage_overlap(own) for own in usage]
    return {
        "usage": [own.tolist() for own in usage],
        "entropy": [usage_entropy(own).tolist() for own in usage],
        "overlap": [[float(own[a, b]) for a, b in pairs] for own in overlaps],
    }


def claims(facts: list[Facts], paper: str) -> list[Claim]:
    """What the report's figures say of streams, seed by seed."""
    chance = chance_overlap(len(facts[0]["usage"][0][0]))
    source = f"{paper}, figure of overlaps"
    first, last = ([fmean(one["overlap"][layer]) for one in facts] for layer in (0, -1))
    none = [0.0] * len(facts)
    return [
        judge(
            "Streams: apart in the first layer (overlap of the most used experts, against chance)",
            source,
            f"{chance:.3f}",
            first,
            none,
            threshold=chance,
        ),
        judge(
            "Streams: nearer in the last layer (overlap, difference to the first)",
            source,
            "first layer",
            last,
            first,
            better="higher",
        ),
        judge(
            "Streams: labels change nothing (logits, how far they move; below 1e-9)",
            "from the method itself",
            "without labels",
            [one["told"] for one in facts],
            none,
            threshold=1e-9,
        ),
    ]


def table(facts: list[Facts]) -> Table:
    """Entropy and overlap of every layer, means over seeds."""
    rows: list[list[Any]] = []
    for layer in range(len(facts[0]["entropy"])):
        even = [fmean(one["entropy"][layer][s] for one in facts) for s in range(len(STREAMS))]
        both = [fmean(one["overlap"][layer][p] for one in facts) for p in range(len(PAIRS))]
        rows.append([f"layer {layer}", *even, *both])
    chance = chance_overlap(len(facts[0]["usage"][0][0]))
    return Table(
        "Streams that no router is told of",
        ["layer", *(f"{name}, entropy" for name in STREAMS), *PAIRS],
        rows,
        note="Entropy of the experts that a stream's tokens go to, 1 when even; overlap of the "
        f"quarter of the experts that two streams use most, {chance:.3f} by chance. Means over "
        "seeds.",
    )


def figures(facts: list[Facts]) -> list[Curves]:
    """Entropy and overlap, layer by layer."""
    return [
        _by_layer(facts, "entropy", STREAMS, "How evenly streams use experts", "entropy"),
        _by_layer(facts, "overlap", PAIRS, "Overlap of streams", "IoU"),
    ]


def _by_layer(facts: list[Facts], name: str, lines: tuple[str, ...], title: str, y: str) -> Curves:
    layers = range(len(facts[0][name]))
    drawn_lines = [
        series(line, list(layers), [[one[name][layer][i] for layer in layers] for one in facts])
        for i, line in enumerate(lines)
    ]
    return Curves(title, "layer", y, drawn_lines, "Bands: 95 % intervals of the mean over seeds.")
