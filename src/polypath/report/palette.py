"""Colours for experts and lines that stay apart for red-green blind eyes as long as can be.

Colours are points of OKLab (Ottosson 2020), where distance is what the eye sees as difference.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

DISTINCT = 64

_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Linear RGB as seen without red cones and without green cones: Machado et al. 2009, severity 1.
_VISIONS = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    ]
)

# Lightness and chroma of three shades, by use: behind text, and as marks on the page.
_SHADES = {
    "tint": [(0.93, 0.06), (0.82, 0.12), (0.71, 0.14)],
    "mark": [(0.66, 0.13), (0.56, 0.13), (0.45, 0.12)],
    "dark_tint": [(0.32, 0.06), (0.41, 0.09), (0.49, 0.11)],
    "dark_mark": [(0.82, 0.09), (0.72, 0.12), (0.62, 0.13)],
}
_HUES = range(0, 360, 15)
_FIRST = (195, 1)
# An eye with all its cones expects more hues: its distances count less, so they have to be larger.
_PATIENCE = np.array([0.4, 1.0, 1.0])[:, None, None]


class Colour(NamedTuple):
    """One colour in its four uses, as "#rrggbb"."""

    tint: str
    mark: str
    dark_tint: str
    dark_mark: str


@cache
def palette(count: int) -> tuple[Colour, ...]:
    """Colours in an order in which each is far from all before it; they repeat after DISTINCT."""
    points = [(hue, shade) for hue in _HUES for shade in range(3)]
    seen = [_seen([_rgb(h, *_SHADES[use][s]) for h, s in points]) for use in ("tint", "dark_tint")]
    order = _farthest_first(np.stack(seen), points)
    picked = [points[order[i % DISTINCT]] for i in range(count)]
    uses = ([_hex(_rgb(h, *shades[s])) for h, s in picked] for shades in _SHADES.values())
    return tuple(Colour(*row) for row in zip(*uses, strict=True))


def _farthest_first(seen: np.ndarray, points: list[tuple[int, int]]) -> list[int]:
    """Indices of `seen` (uses, visions, points, 3): always the one whose nearest is farthest."""
    distances = np.linalg.norm(seen[..., :, None, :] - seen[..., None, :, :], axis=-1)
    distances = (_PATIENCE * distances).min((0, 1))
    order = [points.index(_FIRST)]
    nearest = distances[order[0]].copy()
    while len(order) < DISTINCT:
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[order[-1]])
    return order


def _seen(colours: list[np.ndarray]) -> np.ndarray:
    """Linear RGB to OKLab under each vision: (visions, colours, 3)."""
    linear = np.clip(np.stack(colours) @ _VISIONS.transpose(0, 2, 1), 0, 1)
    return np.cbrt(linear @ _LMS.T) @ _LAB.T


def _rgb(hue: float, lightness: float, chroma: float) -> np.ndarray:
    """OKLCH to linear RGB, cut to what a screen shows."""
    angle = np.deg2rad(hue)
    lab = np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])
    return np.clip(np.linalg.inv(_LMS) @ (np.linalg.inv(_LAB) @ lab) ** 3, 0, 1)


def _hex(linear: np.ndarray) -> str:
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + bytes(np.rint(255 * curve).astype(np.uint8)).hex()
