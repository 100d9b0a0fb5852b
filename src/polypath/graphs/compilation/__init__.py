"""Graph algorithms compiled into the weights of a graph attention network."""

from polypath.graphs.compilation.algorithms import Trace, trace
from polypath.graphs.compilation.batches import GraphBatch, neighbourhoods, random_graphs
from polypath.graphs.compilation.compiled import choices, compiled, shape_for, write
from polypath.graphs.compilation.reasoner import Reasoner, ReasonerConfig, Rollout

__all__ = [
    "GraphBatch",
    "Reasoner",
    "ReasonerConfig",
    "Rollout",
    "Trace",
    "choices",
    "compiled",
    "neighbourhoods",
    "random_graphs",
    "shape_for",
    "trace",
    "write",
]
