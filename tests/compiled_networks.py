"""Batches of graphs for hypothesis, and whether a network follows an algorithm on them."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from polypath.graphs.compilation import GraphBatch, Reasoner, Rollout, Trace, random_graphs
from polypath.graphs.compilation.algorithms import ALGORITHMS, trace
from polypath.graphs.compilation.reasoner import decide

DENSITIES = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 1.0])


@st.composite
def batches(draw: st.DrawFn, algorithm: str, most: int = 64) -> GraphBatch:
    """Random graphs as an algorithm takes them, of several sizes and all densities."""
    sizes = draw(st.lists(st.integers(1, most), min_size=1, max_size=3))
    return graphs_for(algorithm, sizes, draw(st.integers(0, 2**30)), draw(DENSITIES))


def graphs_for(algorithm: str, sizes: list[int], seed: int, probability: float) -> GraphBatch:
    own, generator = ALGORITHMS[algorithm], torch.Generator().manual_seed(seed)
    return random_graphs(torch.tensor(sizes), generator, probability, own.directed, own.weighted)


def run(network: Reasoner, graphs: GraphBatch, feedback: str = "soft") -> tuple[Rollout, Trace]:
    wanted = trace(network.config.algorithm, graphs)
    with torch.no_grad():
        return network(graphs, wanted.steps, feedback), wanted


def wrong(rollout: Rollout, graphs: GraphBatch, wanted: Trace, tolerance: float = 1e-9) -> dict:
    """How many predictions of real nodes differ from the trace, over all steps, by hint."""
    found = {"output": int(((rollout.pi != wanted.pi) & graphs.nodes).sum())}
    for name, raw in rollout.hints.items():
        target = wanted.hints[name][1:]
        predicted = decide(wanted.kinds[name], raw)
        if target.is_floating_point():
            same = (predicted - target).abs() <= tolerance
        else:
            same = predicted == target
        found[name] = int((~same & graphs.nodes).sum())
    return found


def undirected(*pairs: tuple[int, int]) -> Tensor:
    return torch.tensor([*pairs, *((b, a) for a, b in pairs)]).T
