"""The colours, measured with other formulas than those that chose them."""

import numpy as np
import pytest

from polypath.report.palette import DISTINCT, Colour, palette

# Viénot, Brettel and Mollon 1999: linear RGB without red cones, and without green cones.
PROTAN = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
DEUTAN = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    value = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, where a distance of 2.3 can just be seen."""
    xyz = TO_XYZ @ rgb / (TO_XYZ @ np.ones(3))
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours: list[str], vision: np.ndarray) -> float:
    points = [lab(np.clip(vision @ linear(colour), 0, 1)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for i, a in enumerate(points) for b in points[:i])


def contrast(one: str, other: str) -> float:
    light, dark = sorted((float(TO_XYZ[1] @ linear(c)) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("use", ["tint", "dark_tint"])
@pytest.mark.parametrize("vision", [np.eye(3), PROTAN, DEUTAN], ids=["all", "protan", "deutan"])
@pytest.mark.parametrize(("count", "least"), [(4, 16), (8, 9), (16, 2.3)])
def test_few_colours_are_told_apart_by_every_eye(use, vision, count, least) -> None:
    colours = [getattr(colour, use) for colour in palette(count)]
    assert nearest(colours, vision) > least


def test_all_colours_differ_and_then_repeat() -> None:
    colours = palette(DISTINCT + 3)
    assert len(set(colours[:DISTINCT])) == DISTINCT
    assert colours[DISTINCT:] == colours[:3]
    assert palette(8) == palette(64)[:8]


@pytest.mark.parametrize("colour", palette(DISTINCT))
def test_text_can_be_read_on_tints_and_marks_be_seen_on_paper(colour: Colour) -> None:
    assert contrast(colour.tint, "#20242a") > 4.5
    assert contrast(colour.dark_tint, "#e9e6e0") > 4.5
    assert contrast(colour.mark, "#fdfcf9") > 2.4
    assert contrast(colour.dark_mark, "#14171a") > 3
