"""links: what a saved link predictor says of pairs, or of the likeliest partners of a node."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from polypath.cli.parsing import parse
from polypath.errors import InputError, unknown
from polypath.files import replace_text

if TYPE_CHECKING:  # torch is imported when it is needed
    from polypath.graphs.answers import Answer

LINE = "Score pairs of nodes, or find the likeliest partners of one, with a saved link predictor."
COLUMNS = ("source", "relation", "target", "probability", "logit", "known", "paths")


@dataclass(frozen=True)
class Predict:
    """What is asked of a saved link predictor."""

    model: tyro.conf.Positional[Path]
    """A folder of a saved predictor, such as RUN/models/ncn."""
    pairs: Path | None = None
    """A file with a pair of names on each line, as an edge list has them; of a knowledge graph,
    with head, relation and tail."""
    node: Annotated[str | None, tyro.conf.arg(name="for")] = None
    """Instead: find partners for the node of this name."""
    relation: str | None = None
    """Of a knowledge graph: by which relation; the node is the head."""
    inverse: bool = False
    """The node is the tail, heads are found."""
    top: int = 20
    """How many partners; those that are known already are left out."""
    paths: int = 3
    """Paths in the graph that are shown with each answer; 0 for none. Of NBFNet, those that its
    score depends on most."""
    format: Literal["csv", "json"] = "csv"
    """How answers are written."""
    out: Path | None = None
    """The file to write; the terminal by default."""


def links(arguments: list[str]) -> None:
    """`polypath links predict`."""
    if not arguments or arguments[0] != "predict":
        if arguments and not arguments[0].startswith("-"):
            raise unknown("command of links", arguments[0], ["predict"])
        raise InputError("polypath links: predict is its command (`polypath links predict --help`)")
    given = parse(Predict, arguments[1:], "polypath links predict", LINE)
    if (given.pairs is None) == (given.node is None):
        raise InputError("links predict: name --pairs FILE or --for NODE, one of them")
    if given.node is None and (given.relation is not None or given.inverse):
        raise InputError("links predict: --relation and --inverse go with --for NODE")
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
    """Of the pairs or facts of a file in its order, or the likeliest partners of a node."""
    from polypath.graphs import answers as found
    from polypath.graphs.files import read_pairs
    from polypath.graphs.saved_knowledge import SavedKnowledge, read_saved
    from polypath.graphs.triple_files import read_facts

    saved = read_saved(given.model)
    if not isinstance(saved, SavedKnowledge):
        if given.relation is not None or given.inverse:
            raise InputError(f"links predict: {given.model} knows links of one kind, no relations")
        if given.pairs is not None:
            return found.of_pairs(saved, read_pairs(given.pairs, saved.names), given.paths)
        return found.partners(saved, given.node or "", given.top, given.paths)
    if given.pairs is not None:
        return found.of_facts(saved, read_facts(given.pairs, saved.graph), given.paths)
    if given.relation is None:
        known = ", ".join(saved.graph.relations)
        raise InputError(f"links predict: --for asks by --relation here, one of {known:.500}")
    query = given.node or "", given.relation, given.inverse
    return found.tails(saved, *query, given.top, given.paths)


def _written(found: list[Answer], form: str) -> str:
    if form == "json":
        return json.dumps([asdict(answer) for answer in found], indent=1) + "\n"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for answer in found:
        paths = "; ".join(" - ".join(path) for path in answer.paths)
        numbers = f"{answer.probability:.6g}", f"{answer.logit:.6g}"
        known = "yes" if answer.known else "no"
        writer.writerow([answer.source, answer.relation, answer.target, *numbers, known, paths])
    return text.getvalue()
