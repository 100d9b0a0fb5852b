"""Schedules: how many experts each layer of a stack has, by its depth.

Source: DynaMoE, arXiv 2603.01697, which names the shapes; their closed forms are this project's, as
the paper's could not be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from polypath.errors import InputError, unknown

# From depth, 0 at the first layer and 1 at the last, to a share of the range.
SHAPES: dict[str, Callable[[float], float]] = {
    "uniform": lambda depth: 0.5,
    "descending": lambda depth: 1 - depth,
    "ascending": lambda depth: depth,
    "pyramid-up": lambda depth: 1 - abs(2 * depth - 1),
    "pyramid-down": lambda depth: abs(2 * depth - 1),
    "wave-up": lambda depth: 0.5 * (1 + math.sin(2 * math.pi * depth)),
    "wave-down": lambda depth: 0.5 * (1 - math.sin(2 * math.pi * depth)),
}


def schedule(
    shape: str, layers: int, least: int, most: int, budget: int | None = None
) -> list[int]:
    """The number of experts of each layer, from below; one layer alone has the middle of the range.

    least, most: the range that the shape runs through.
    budget: the sum over layers that the shape is scaled to, for shapes that are compared; each
        layer keeps at least one.
    Raises InputError for an unknown shape, an empty range, or a budget of less than one a layer.
    """
    if shape not in SHAPES:
        raise unknown("schedule", shape, SHAPES)
    if not 1 <= least <= most or layers < 1:
        raise InputError(f"schedule: {layers} layers of {least} to {most}; 1 ≤ least ≤ most")
    share = SHAPES[shape if layers > 1 else "uniform"]
    exact = [least + (most - least) * share(i / max(1, layers - 1)) for i in range(layers)]
    if budget is None:
        return [math.floor(value + 0.5) for value in exact]
    return _scaled(exact, budget)


def _scaled(shape: list[float], budget: int) -> list[int]:
    """Whole numbers that sum to the budget, in a shape's proportions, by largest remainders."""
    if budget < len(shape):
        raise InputError(f"schedule: a budget of {budget} for {len(shape)} layers of one or more")
    exact = [budget * value / sum(shape) for value in shape]
    counts = [max(1, math.floor(value + 1e-9)) for value in exact]
    while (left := budget - sum(counts)) != 0:
        step = 1 if left > 0 else -1
        able = [i for i, count in enumerate(counts) if count + step >= 1]
        best = max(able, key=lambda i: (round(step * (exact[i] - counts[i]), 9), shape[i]))
        counts[best] += step
    return counts
