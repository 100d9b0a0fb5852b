"""What a report can draw, as plain frozen data; how it is drawn is the page's business.

A number that is missing, or not finite, is None in what is read back and a gap in what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from polypath.errors import InputError

Number = float | None


@dataclass(frozen=True)
class Series:
    """One line: `mean` over `x`, with a band from `low` to `high` where those are not None."""

    name: str
    x: Sequence[float]
    mean: Sequence[Number]
    low: Sequence[Number]
    high: Sequence[Number]

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.mean), len(self.low), len(self.high)}
        if len(lengths) > 1:
            raise InputError(f"series {self.name!r}: x, mean, low and high differ in length")


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis; `x` and `y` name the axes with their units."""

    kind: Literal["curves"] = field(default="curves", init=False)
    title: str
    x: str
    y: str
    series: Sequence[Series]
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """values[row][column] as colours; `x` and `y` say what columns and rows are."""

    kind: Literal["heatmap"] = field(default="heatmap", init=False)
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[Number]]
    x: str = ""
    y: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _shaped(f"heat map {self.title!r}", self.values, len(self.rows), len(self.columns))


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps of which one is seen at a time, by their names; `choice` says what is chosen."""

    kind: Literal["heatmaps"] = field(default="heatmaps", init=False)
    title: str
    choice: str
    maps: Mapping[str, HeatMap]
    note: str = ""


@dataclass(frozen=True)
class Flow:
    """transitions[i][a][b]: how much went from expert a of layers[i] to b of layers[i + 1]."""

    kind: Literal["flow"] = field(default="flow", init=False)
    title: str
    layers: Sequence[str]
    transitions: Sequence[Sequence[Sequence[float]]]
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.transitions) != max(len(self.layers) - 1, 0):
            raise InputError(
                f"flow {self.title!r}: {len(self.layers)} layers need {len(self.layers) - 1} "
                f"matrices between them, not {len(self.transitions)}"
            )
        for above, below in zip(self.transitions, self.transitions[1:], strict=False):
            if above and len(above[0]) != len(below):
                raise InputError(f"flow {self.title!r}: a layer has two numbers of experts")


@dataclass(frozen=True)
class Walk:
    """Nodes from a start to an end, what leads from each to the next, and how much that counts."""

    nodes: Sequence[str]
    relations: Sequence[str]
    weight: float

    def __post_init__(self) -> None:
        if len(self.nodes) < 2 or len(self.relations) != len(self.nodes) - 1:
            raise InputError(
                f"walk {' '.join(self.nodes)!r}: {len(self.relations)} relations between "
                f"{len(self.nodes)} nodes; two nodes at least, and one relation less, are right"
            )


@dataclass(frozen=True)
class Paths:
    """Ways from one node to another, as a graph."""

    kind: Literal["paths"] = field(default="paths", init=False)
    title: str
    paths: Sequence[Walk]
    note: str = ""

    def __post_init__(self) -> None:
        if len({(path.nodes[0], path.nodes[-1]) for path in self.paths}) > 1:
            raise InputError(f"paths {self.title!r}: they do not join the same two nodes")


@dataclass(frozen=True)
class Layer:
    """The chosen experts of every token at one layer, the most heavily weighted anywhere."""

    experts: Sequence[Sequence[int]]
    weights: Sequence[Sequence[float]]
    num_experts: int


@dataclass(frozen=True)
class Passage:
    """A text in tokens, the kind of each, and where each went, by layer."""

    name: str
    tokens: Sequence[str]
    kinds: Sequence[str]
    layers: Mapping[str, Layer]

    def __post_init__(self) -> None:
        lengths = {"kinds": len(self.kinds)}
        for name, layer in self.layers.items():
            lengths |= {f"experts of {name}": len(layer.experts)}
            lengths |= {f"weights of {name}": len(layer.weights)}
        for what, length in lengths.items():
            if length != len(self.tokens):
                raise InputError(
                    f"passage {self.name!r}: {len(self.tokens)} tokens, but {length} {what}"
                )


@dataclass(frozen=True)
class Explorer:
    """Passages, with the same layers each, whose tokens are coloured by their experts."""

    kind: Literal["explorer"] = field(default="explorer", init=False)
    title: str
    passages: Sequence[Passage]
    note: str = ""

    def __post_init__(self) -> None:
        if len({tuple(passage.layers) for passage in self.passages}) > 1:
            raise InputError(f"explorer {self.title!r}: passages differ in their layers")


Figure = Curves | HeatMap | HeatMaps | Flow | Paths | Explorer


def _shaped(what: str, values: Sequence[Sequence[Number]], rows: int, columns: int) -> None:
    if len(values) != rows or any(len(row) != columns for row in values):
        raise InputError(f"{what}: values are not {rows} rows of {columns}")
