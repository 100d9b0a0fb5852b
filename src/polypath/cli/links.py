"""links: what a saved link predictor says of pairs, or of the likeliest partners of a node."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from polypath.cli.parsing import parse
from polypath.errors import InputError, unknown
from polypath.files import replace_text

LINE = "Score pairs of nodes, or find the likeliest partners of one, with a saved link predictor."


@dataclass(frozen=True)
class Predict:
    """What is asked of a saved link predictor."""

    model: tyro.conf.Positional[Path]
    """A folder of a saved predictor, such as RUN/models/ncn-0."""
    pairs: Path | None = None
    """A file with a pair of names on each line, as an edge list has them."""
    node: Annotated[str | None, tyro.conf.arg(name="for")] = None
    """Instead: find partners for the node of this name."""
    top: int = 20
    """How many partners; those that are linked already are left out."""
    paths: int = 3
    """Paths in the graph that are shown with each answer; 0 for none."""
    format: Literal["csv", "json"] = "csv"
    """How answers are written."""
    out: Path | None = None
    """The file to write; the terminal by default."""


@dataclass(frozen=True)
class Answer:
    """A pair with its score; paths: names of nodes from source to target."""

    source: str
    target: str
    probability: float
    logit: float
    linked: bool
    paths: Sequence[Sequence[str]]


def links(arguments: list[str]) -> None:
    """`polypath links predict`."""
    if not arguments or arguments[0] != "predict":
        if arguments and not arguments[0].startswith("-"):
            raise unknown("command of links", arguments[0], ["predict"])
        raise InputError("polypath links: predict is its command (`polypath links predict --help`)")
    given = parse(Predict, arguments[1:], "polypath links predict", LINE)
    if (given.pairs is None) == (given.node is None):
        raise InputError("links predict: name --pairs FILE or --for NODE, one of them")
    if given.top < 1 or given.paths < 0:
        raise InputError(
            f"links predict: --top {given.top}, --paths {given.paths}; 1 and 0 at least"
        )
    text = _written(answers(given), given.format)
    if given.out is None:
        sys.stdout.write(text)
    else:
        replace_text(given.out, text)


def answers(given: Predict) -> list[Answer]:
    """Of the pairs of a file in its order, or of the likeliest partners of a node."""
    import torch

    from polypath.graphs.files import find, read_pairs
    from polypath.graphs.paths import paths_between
    from polypath.graphs.predictors import link_scores
    from polypath.graphs.saved import SavedPredictor

    saved = SavedPredictor.load(given.model)
    if given.pairs is not None:
        pairs = read_pairs(given.pairs, saved.names)
    else:
        ids = {name: place for place, name in enumerate(saved.names)}
        own = find(ids, given.node or "", "links predict")
        pairs = _free_partners(saved.graph, own)
    graph = saved.graph.without(pairs)  # as in training: no answer may know itself
    logits = link_scores(saved.predictor, graph, saved.x, pairs)
    if given.pairs is None:
        order = logits.argsort(descending=True, stable=True)[: given.top]
        pairs, logits = pairs[:, order], logits[order]
    linked = saved.graph.has(pairs).tolist()
    found = []
    for place, (i, j) in enumerate(pairs.T.tolist()):
        paths = paths_between(graph, i, j, given.paths)
        found.append(
            Answer(
                saved.names[i],
                saved.names[j],
                float(torch.sigmoid(logits[place])),
                float(logits[place]),
                linked[place],
                [[saved.names[node] for node in path] for path in paths],
            )
        )
    return found


def _free_partners(graph: Any, node: int) -> Any:
    """(2, ·): the node with each that it is not linked to."""
    import torch

    others = torch.arange(graph.num_nodes)
    near = graph.nodes[graph.starts[node] : graph.starts[node + 1]]
    others = others[(others != node) & ~torch.isin(others, near)]
    if not len(others):
        raise InputError("links predict: the node is linked to all others")
    return torch.stack([torch.full_like(others, node), others])


def _written(found: list[Answer], form: str) -> str:
    if form == "json":
        return json.dumps([asdict(answer) for answer in found], indent=1) + "\n"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "target", "probability", "logit", "linked", "paths"])
    for answer in found:
        paths = "; ".join(" - ".join(path) for path in answer.paths)
        numbers = f"{answer.probability:.6g}", f"{answer.logit:.6g}"
        linked = "yes" if answer.linked else "no"
        writer.writerow([answer.source, answer.target, *numbers, linked, paths])
    return text.getvalue()
