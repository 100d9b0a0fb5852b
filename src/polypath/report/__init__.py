"""The pages that people look at, and the plain data that they are made of."""

from polypath.report.figures import (
    Curves,
    Explorer,
    Figure,
    Flow,
    HeatMap,
    HeatMaps,
    Layer,
    Passage,
    Paths,
    Series,
    Walk,
)
from polypath.report.outcome import Claim, Outcome, Table
from polypath.report.page import render, write_report
from polypath.report.results import results_table
from polypath.report.statistics import Estimate, estimate, judge, paired, series

__all__ = [
    "Claim",
    "Curves",
    "Estimate",
    "Explorer",
    "Figure",
    "Flow",
    "HeatMap",
    "HeatMaps",
    "Layer",
    "Outcome",
    "Passage",
    "Paths",
    "Series",
    "Table",
    "Walk",
    "estimate",
    "judge",
    "paired",
    "render",
    "results_table",
    "series",
    "write_report",
]
