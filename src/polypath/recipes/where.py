"""Where the tokens of a finished routed language model went: figures, and a measure over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from polypath.diagnosis import specialisation
from polypath.files import replace_file
from polypath.recipes.arms import Part, kept_text, routes_on, trained
from polypath.report import Figure, Table
from polypath.report.routes import Text as Words
from polypath.report.routes import explorer, flow, kind_maps, kind_table, load_map
from polypath.routing import Routes, Routing
from polypath.training import distribution
from polypath.training.text import Text

PASSAGES = 3
WINDOWS_IN_PASSAGE = 4


def validation_routes(part: Part, model: nn.Module | None = None) -> dict[str, Routing]:
    """Each layer's routing of the validation windows' input tokens, by the part's trained model.

    model: it, where it is at hand.
    """
    text = kept_text(part.run.folder / "data")
    windows = text.validation(part.validation_windows)[:, :-1]
    return routes_on(trained(part) if model is None else model, windows).joined()


def kinds(part: Part) -> list[str]:
    """The kind of each token of `validation_routes`, in the same order."""
    text = kept_text(part.run.folder / "data")
    indices = text.validation_kinds(part.validation_windows).flatten().tolist()
    return [text.kind_names[index] for index in indices]


def kind_information(part: Part) -> tuple[float, float]:
    """How much experts say about kinds of tokens, and about shuffled kinds; means over layers.

    Normalised mutual information, 0 to 1; see `polypath.diagnosis.specialisation`.
    """
    text = kept_text(part.run.folder / "data")
    labels = text.validation_kinds(part.validation_windows).flatten()
    count = len(text.kind_names)
    generator = torch.Generator().manual_seed(part.seed)
    found = [
        specialisation(routing, labels, count, generator)
        for routing in validation_routes(part).values()
    ]
    information = sum(layer.information for layer in found) / len(found)
    return information, sum(layer.control for layer in found) / len(found)


def figures(part: Part) -> tuple[list[Figure], list[Table]]:
    """Load, flow, what experts are chosen for, and the explorer; the routes are kept in the run."""
    layers = validation_routes(part)
    named = kinds(part)
    words, routes = _passages(part)
    if distribution.is_main():
        replace_file(part.run.folder / "routes.safetensors", routes.save)
    shown: list[Figure] = [load_map(layers), flow(layers), kind_maps(layers, named)]
    shown.append(explorer(routes.joined(), words))
    return shown, [kind_table(layers, named)]


def load_maps(parts: Mapping[str, list[Part]]) -> list[Figure]:
    """The load of the first seed of every arm."""
    return [
        load_map(validation_routes(own[0]), f"Load per layer and expert, {name}")
        for name, own in parts.items()
    ]


def _passages(part: Part) -> tuple[list[Words], Routes]:
    """Passages spread over the validation text, and the routes of their tokens."""
    text = kept_text(part.run.folder / "data")
    starts = [len(text.valid) * place // (2 * PASSAGES) for place in range(1, 2 * PASSAGES, 2)]
    places = [text.passage(start, WINDOWS_IN_PASSAGE) for start in starts]
    tokens = torch.cat([text.valid[place] for place in places])
    routes = routes_on(trained(part), tokens.view(-1, text.context))
    return [_words(text, place, number) for number, place in enumerate(places, 1)], routes


def _words(text: Text, place: slice, number: int) -> Words:
    shown: Sequence[str] = text.tokenizer.texts(text.valid[place])
    named = [text.kind_names[kind] for kind in text.kinds[place].tolist()]
    return Words(f"passage {number}", shown, named)
