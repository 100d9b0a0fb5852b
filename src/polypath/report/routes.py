"""Recorded routings as figures: load, flow, what experts are chosen for, and the explorer.

`layers` is what `Routes.joined()` gives: each layer's name and its Routing over the same things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from polypath.diagnosis import contingency, imbalance, shares, specialisation, transitions
from polypath.errors import InputError
from polypath.report.figures import Explorer, Flow, HeatMap, HeatMaps, Layer, Passage
from polypath.report.metrics import layer_labels
from polypath.report.outcome import Cell, Table
from polypath.routing import Routing


class Text(NamedTuple):
    """A passage as its tokens' texts and the kind of each."""

    name: str
    tokens: Sequence[str]
    kinds: Sequence[str]


def load_map(layers: Mapping[str, Routing], title: str = "Load per layer and expert") -> HeatMap:
    """Each expert's share of its layer's choices."""
    width = max(routing.num_experts for routing in layers.values())
    values = [shares(routing).tolist() for routing in layers.values()]
    worst = max(imbalance(routing) for routing in layers.values())
    even = {1 / routing.num_experts for routing in layers.values()}
    level = f" An even load is {even.pop():.3g}." if len(even) == 1 else ""
    return HeatMap(
        title,
        rows=list(layer_labels(list(layers)).values()),
        columns=[str(expert) for expert in range(width)],
        values=[row + [None] * (width - len(row)) for row in values],
        x="expert",
        note=f"Share of the choices at a layer that fall on an expert.{level} "
        f"The busiest expert has {1 + worst:.2f} times the mean of its layer.",
    )


def flow(layers: Mapping[str, Routing], title: str = "Flow of tokens between layers") -> Flow:
    """How many tokens go from each expert to each one of the next layer."""
    names = layer_labels(list(layers))
    counts = [flow.tolist() for flow in transitions(layers)]
    return Flow(
        title,
        list(names.values()),
        counts,
        note="Tokens by the expert that serves them, from layer to layer; a token with several "
        "experts is split evenly over them.",
    )


def kind_maps(
    layers: Mapping[str, Routing],
    kinds: Sequence[str],
    title: str = "What experts are chosen for",
) -> HeatMaps:
    """Where the tokens of each kind go, layer by layer; every column sums to 1."""
    names, labels = _labels(kinds)
    counts = Counter(kinds)
    columns = [f"{name} ({counts[name]})" for name in names]
    maps = {}
    shown = layer_labels(list(layers))
    for layer, routing in layers.items():
        table = contingency(routing, labels, len(names))
        maps[shown[layer]] = HeatMap(
            shown[layer],
            rows=[str(expert) for expert in range(routing.num_experts)],
            columns=columns,
            values=(table / table.sum(0).clamp_min(1e-12)).tolist(),
            x="kind of token",
            y="expert",
        )
    note = (
        "Share of the tokens of a kind that an expert serves; every column sums to 1. "
        "In parentheses, how many tokens of a kind there are."
    )
    return HeatMaps(title, "layer", maps, note)


def kind_table(layers: Mapping[str, Routing], kinds: Sequence[str]) -> Table:
    """How much the experts of a token say about its kind, layer by layer, beside a control."""
    names, labels = _labels(kinds)
    shown = layer_labels(list(layers))
    rows: list[list[Cell]] = []
    for layer, routing in layers.items():
        generator = torch.Generator().manual_seed(0)
        found = specialisation(routing, labels, len(names), generator)
        rows.append([shown[layer], found.information, found.control])
    return Table(
        "Experts and kinds of tokens",
        ["layer", "mutual information", "labels shuffled"],
        rows,
        note="Normalised mutual information: 0 when an expert's tokens are like any others, "
        "1 when experts and kinds are the same partition.",
    )


def explorer(
    layers: Mapping[str, Routing], texts: Sequence[Text], title: str = "Where every token went"
) -> Explorer:
    """Passages with the route of every token; the things of `layers` are their tokens in order."""
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text.tokens))
    names = layer_labels(list(layers))
    for layer, routing in layers.items():
        if len(routing) != ends[-1]:
            raise InputError(f"explorer: {len(routing)} things at {layer} for {ends[-1]} tokens")
    passages = [
        Passage(
            text.name,
            list(text.tokens),
            list(text.kinds),
            {names[layer]: _layer(routing[a:b]) for layer, routing in layers.items()},
        )
        for text, (a, b) in zip(texts, pairwise(ends), strict=True)
    ]
    return Explorer(
        title,
        passages,
        note="Each token in the colour of the expert that weighs most; point at one, or move to it "
        "with the arrow keys, for all of its experts. Picking an expert leaves its own in colour.",
    )


def _layer(routing: Routing) -> Layer:
    """Each token's experts, the most heavily weighted first, without empty slots."""
    order = routing.weights.argsort(-1, descending=True)
    experts = routing.experts.gather(1, order).tolist()
    weights = routing.weights.float().gather(1, order).tolist()
    chosen = [
        [(e, w) for e, w in zip(*row, strict=True) if e >= 0]
        for row in zip(experts, weights, strict=True)
    ]
    return Layer(
        [[e for e, _ in row] for row in chosen],
        [[round(w, 4) for _, w in row] for row in chosen],
        routing.num_experts,
    )


def _labels(kinds: Sequence[str]) -> tuple[list[str], Tensor]:
    """The kinds by how many tokens they have, and each token's index among them."""
    names = [kind for kind, _ in Counter(kinds).most_common()]
    index = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([index[kind] for kind in kinds], dtype=torch.int64)
