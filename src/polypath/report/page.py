"""The page of a run: one HTML file that holds all it shows and opens offline.

Charts are SVG that the templates write, with colours from CSS: next to plotly.js (4.8 MB) the page
is a tenth in size, follows the colour scheme and prints without redrawing, and is text to
screen readers.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from polypath.files import replace_text
from polypath.plain import encode
from polypath.report.drawing import plots, shades, stream, web
from polypath.report.figures import (
    Curves,
    Explorer,
    Figure,
    Flow,
    HeatMap,
    HeatMaps,
    Passage,
    Paths,
)
from polypath.report.outcome import Outcome
from polypath.report.palette import DISTINCT, palette
from polypath.report.wording import (
    aligned,
    duration,
    measured,
    number,
    rows,
    verdict,
    visible,
    word,
)

STYLES = ("page.css", "figures.css", "explorer.css")
SCRIPTS = ("tips.js", "views.js", "curves.js", "flow.js", "explorer.js")


def render(run_folder: str | Path) -> Path:
    """Write `report.html` from the `outcome.json` of a run folder; the path of the page."""
    path = Path(run_folder) / "report.html"
    write_report(Outcome.read(Path(run_folder) / "outcome.json"), path)
    return path


def write_report(outcome: Outcome, path: str | Path) -> None:
    """Write the page of an outcome as one self-contained HTML file."""
    replace_text(Path(path), page_of(outcome))


def page_of(outcome: Outcome) -> str:
    """The page of an outcome as HTML."""
    script = _assets(SCRIPTS)
    return (
        _environment()
        .get_template("page.html")
        .render(
            outcome=outcome,
            figures=[(figure, _drawn(figure)) for figure in outcome.figures],
            colours=palette(DISTINCT),
            style=_assets(STYLES),
            script=script,
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _drawn(figure: Figure) -> dict[str, Any]:
    """What the template of a figure draws beside the figure itself."""
    match figure:
        case Curves():
            return {"plots": plots(figure), "series": encode(figure.series)}
        case HeatMap():
            return _cells(figure)
        case HeatMaps():
            return {"maps": {name: _cells(heatmap) for name, heatmap in figure.maps.items()}}
        case Flow():
            return {"stream": stream(figure)}
        case Paths():
            return {"web": web(figure)}
        case Explorer():
            layers = [layer for passage in figure.passages for layer in passage.layers.values()]
            return {
                "passages": [_routes(passage) for passage in figure.passages],
                "experts": max((layer.num_experts for layer in layers), default=0),
            }


def _cells(figure: HeatMap) -> dict[str, Any]:
    texts = iter(aligned([value for row in figure.values for value in row], 2))
    return {
        "levels": shades(figure),
        "texts": [[next(texts) for _ in row] for row in figure.values],
    }


def _routes(passage: Passage) -> dict[str, Any]:
    """What the explorer's script needs of a passage; its text is in the page already."""
    layers = [
        {"experts": layer.experts, "weights": layer.weights, "count": layer.num_experts}
        for layer in passage.layers.values()
    ]
    return {"kinds": passage.kinds, "layers": layers}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("polypath.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        # Texts only: what is marked as safe already is of another type.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    for read in (aligned, duration, measured, number, rows, verdict, word):
        environment.filters[read.__name__] = read
    return environment


@cache
def _assets(names: tuple[str, ...]) -> str:
    folder = files("polypath.report") / "assets"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
