"""Figures as coordinates for the templates: x and y run from 0 to 1000, y downwards.

The page stretches these over whatever room it has, so that text beside them keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from polypath.report.figures import Curves, Flow, HeatMap, Number, Paths, Series

SIDE = 1000.0
MOST_LINKS = 300


@dataclass(frozen=True)
class Scale:
    """Numbers from low to high onto 0..1000, with round numbers as ticks."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[Number], margin: float = 0.0) -> Scale:
        """A scale that holds all values, with a margin as a part of their range."""
        known = [value for value in values if value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        room = margin * (high - low) if high > low else abs(low) * margin or 0.5
        return cls(low - room, high + room)

    def __call__(self, value: float) -> float:
        return SIDE * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[tuple[float, float]]:
        """About `count` places and values: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [round(i * step, 12) for i in range(first, last + 1)]
        return [(self(value), value) for value in values]


@dataclass(frozen=True)
class Line:
    """A series as SVG paths: its mean, and the band between low and high."""

    name: str
    mean: str
    band: str


@dataclass(frozen=True)
class Plot:
    """One view of curves."""

    name: str
    x: Scale
    y: Scale
    lines: list[Line]


def plots(figure: Curves) -> list[Plot]:
    """All of the curves, and their second half where a steep start flattens it in the first."""
    whole = _plot("whole run", figure.series)
    middle = (whole.x.low + whole.x.high) / 2
    halves = [_from(line, middle) for line in figure.series]
    late = _plot("second half", halves)
    enough = all(len(line.x) > 2 for line in halves)
    if enough and late.y.high - late.y.low < 0.4 * (whole.y.high - whole.y.low):
        return [whole, late]
    return [whole]


def _from(line: Series, start: float) -> Series:
    at = [i for i, x in enumerate(line.x) if x >= start]
    return Series(
        line.name,
        x=[line.x[i] for i in at],
        mean=[line.mean[i] for i in at],
        low=[line.low[i] for i in at],
        high=[line.high[i] for i in at],
    )


def _plot(name: str, lines: Sequence[Series]) -> Plot:
    x = Scale.over(value for line in lines for value in line.x)
    # The band of few seeds may reach far beyond the lines; it is cut, the lines never are.
    y = Scale.over((value for line in lines for value in line.mean), margin=0.08)
    return Plot(name, x, y, [_line(line, x, y) for line in lines])


def _line(line: Series, x: Scale, y: Scale) -> Line:
    def at(a: float, b: float) -> str:
        return f"{x(a):.1f},{SIDE - y(b):.1f}"

    mean, band = [], []
    for run in _known(zip(line.x, line.mean, strict=True)):
        mean.append("M" + "L".join(at(a, b) for a, b in run))
    for run in _known(zip(line.x, line.low, line.high, strict=True)):
        there = [at(a, low) for a, low, _ in run]
        back = [at(a, high) for a, _, high in reversed(run)]
        band.append("M" + "L".join(there + back) + "Z")
    return Line(line.name, "".join(mean), "".join(band))


def _known(points: Iterable[tuple[Any, ...]]) -> Iterable[list[tuple[Any, ...]]]:
    """Stretches of points without a gap."""
    for known, run in groupby(points, lambda point: None not in point):
        if known:
            yield list(run)


def shades(figure: HeatMap) -> list[list[Number]]:
    """The values of a heat map on 0..1, from zero or the lowest to the highest."""
    known = [value for row in figure.values for value in row if value is not None]
    low = min([0.0, *known])
    reach = max(known, default=1.0) - low or 1.0
    return [[None if v is None else (v - low) / reach for v in row] for row in figure.values]


@dataclass(frozen=True)
class Node:
    """An expert of a layer as a bar: its top and height, and how much goes through it."""

    layer: int
    expert: int
    top: float
    height: float
    amount: float
    share: float


@dataclass(frozen=True)
class Ribbon:
    """What goes from a node to one of the next layer, as an SVG path."""

    layer: int
    source: int
    target: int
    path: str


@dataclass(frozen=True)
class Stream:
    """A flow laid out.

    drawn: the part of all that goes between layers that has a ribbon.
    widest: the most experts of a layer.
    """

    nodes: list[Node]
    ribbons: list[Ribbon]
    drawn: float
    widest: int


def stream(figure: Flow) -> Stream:
    """Bars as high as what goes through them, ribbons as wide as what goes along them.

    Of many links between two layers only the MOST_LINKS strongest are drawn.
    """
    amounts = _amounts(figure)
    most = max((sum(layer) for layer in amounts), default=0) or 1
    widest = max(map(len, amounts), default=1)
    gap = min(12.0, 250 / widest)
    room = SIDE - gap * (widest - 1)
    nodes = []
    for i, layer in enumerate(amounts):
        top = 0.0
        for expert, amount in enumerate(layer):
            height = room * amount / most
            nodes.append(Node(i, expert, top, height, amount, amount / (sum(layer) or 1)))
            top += height + gap
    tops = {(node.layer, node.expert): node.top for node in nodes}
    ribbons: list[Ribbon] = []
    drawn = total = 0.0
    for i, counts in enumerate(figure.transitions):
        span = SIDE / len(figure.transitions)
        leave = {a: tops[i, a] for a in range(len(amounts[i]))}
        enter = {b: tops[i + 1, b] for b in range(len(amounts[i + 1]))}
        weakest = sorted((n for row in counts for n in row), reverse=True)[:MOST_LINKS][-1:]
        for a, row in enumerate(counts):
            for b, count in enumerate(row):
                width = room * count / most
                if count > 0 and count >= weakest[0]:
                    path = _ribbon(span * i, leave[a], span * (i + 1), enter[b], width)
                    ribbons.append(Ribbon(i, a, b, path))
                    drawn += count
                leave[a] += width
                enter[b] += width
                total += count
    return Stream(nodes, ribbons, drawn / (total or 1), widest)


def _amounts(figure: Flow) -> list[list[float]]:
    """What goes through each expert of each layer: the larger of what comes in and goes out."""
    out = [[sum(row) for row in counts] for counts in figure.transitions]
    into = [[sum(column) for column in zip(*counts, strict=True)] for counts in figure.transitions]
    middle = [list(map(max, i, o)) for i, o in zip(into, out[1:], strict=False)]
    return [*out[:1], *middle, *into[-1:]]


def _ribbon(x0: float, y0: float, x1: float, y1: float, width: float) -> str:
    middle = (x0 + x1) / 2
    return (
        f"M{x0:.1f},{y0:.1f}C{middle:.1f},{y0:.1f} {middle:.1f},{y1:.1f} {x1:.1f},{y1:.1f}"
        f"v{width:.2f}C{middle:.1f},{y1 + width:.1f} {middle:.1f},{y0 + width:.1f} "
        f"{x0:.1f},{y0 + width:.1f}Z"
    )


@dataclass(frozen=True)
class Stop:
    """A node of paths and its place; the two that are joined are `end`s."""

    name: str
    x: float
    y: float
    end: bool


@dataclass(frozen=True)
class Step:
    """What leads from one node to another, as an SVG path, and the place of its name.

    share: of the heaviest step, 0 to 1.
    """

    relation: str
    path: str
    x: float
    y: float
    share: float


@dataclass(frozen=True)
class Web:
    """Paths laid out; columns, tallest: how many columns, and nodes in the fullest of them."""

    stops: list[Stop]
    steps: list[Step]
    columns: int
    tallest: int


def web(figure: Paths) -> Web:
    """Nodes by how far they come along a path, steps as heavy as all paths through them."""
    column: dict[str, int] = {}
    for path in figure.paths:
        for place, name in enumerate(path.nodes[:-1]):
            column[name] = max(place, column.get(name, 0))
    last = max((len(path.nodes) for path in figure.paths), default=1) - 1
    for path in figure.paths:
        column[path.nodes[-1]] = last
    rows = [[name for name, own in column.items() if own == place] for place in range(last + 1)]
    at = {
        name: (SIDE * place / max(last, 1), SIDE * (row + 0.5) / len(names))
        for place, names in enumerate(rows)
        for row, name in enumerate(names)
    }
    weights: dict[tuple[str, str, str], float] = {}
    for path in figure.paths:
        for step in zip(path.nodes, path.relations, path.nodes[1:], strict=False):
            weights[step] = weights.get(step, 0.0) + abs(path.weight)
    most = max(weights.values(), default=0.0) or 1.0
    between: dict[frozenset[str], int] = {}
    steps = []
    for (source, relation, target), weight in weights.items():
        count = between[frozenset((source, target))] = 1 + between.get(
            frozenset((source, target)), -1
        )
        skipped = abs(column[target] - column[source]) - 1
        arc = min(180.0 + 100.0 * skipped, 380.0) * (-1) ** skipped if skipped > 0 else 0.0
        bend = arc + 140.0 * ((count + 1) // 2) * (-1) ** count
        steps.append(_step(relation, at[source], at[target], bend, weight / most))
    ends = {name for path in figure.paths for name in (path.nodes[0], path.nodes[-1])}
    stops = [Stop(name, *place, name in ends) for name, place in at.items()]
    return Web(stops, steps, last + 1, max(map(len, rows), default=0))


def _step(
    relation: str, start: tuple[float, float], end: tuple[float, float], bend: float, share: float
) -> Step:
    """A curve that passes its middle `bend` lower than a straight line would."""
    (x0, y0), (x1, y1) = start, end
    x, y = (x0 + x1) / 2, (y0 + y1) / 2 + bend
    path = f"M{x0:.1f},{y0:.1f}Q{x:.1f},{y + bend:.1f} {x1:.1f},{y1:.1f}"
    return Step(relation, path, x, y, share)
