"""What the concentration of every node costs, beside plain Python and beside products of matrices.

    python benchmarks/concentration.py [--quick] [--json FILE]

First graphs of 2,000 nodes: networkx's clustering coefficient, multisets of walks in plain Python,
and sparse products with all rows at once, each beside this library's. Then graphs of 100,000 nodes
(10,000 with --quick), by this library alone: seconds, how many neighbours are touched, and a floor,
which is a gather of as many numbers as are touched. On one thread, in CPU seconds of the process;
medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from timing import beside, in_a_process, repeats, seconds, show, write
from torch import Tensor

from polypath.graphs import Adjacency, undirected
from polypath.graphs.concentration import (
    approximate_topological_concentration,
    ego_density,
    topological_concentration,
)
from polypath.graphs.heuristics import to_scipy

DEGREE, SMALL, LARGE, ROWS = 10, 2_000, 100_000, 2_000
KINDS = ("even", "hubs")


def graph(kind: str, nodes: int) -> Adjacency:
    """Edges between random nodes: all as likely, or those of low ids far likelier."""
    generator = torch.Generator().manual_seed(0)
    likely = torch.ones(nodes) if kind == "even" else (torch.arange(nodes) + 10.0) ** -0.6
    ends = torch.multinomial(likely.double(), DEGREE * nodes, True, generator=generator)
    return Adjacency.of(undirected(ends.view(2, -1), nodes))


def by_sets(own: Adjacency, depth: int) -> Tensor:
    """From the multisets of walks, in plain Python."""
    near = [own.nodes[a:b].tolist() for a, b in own.starts.unfold(0, 2, 1).tolist()]
    decay = own.num_nodes / len(own.nodes)
    trees = []
    for node in range(own.num_nodes):
        ends, tree = [node], []
        for _ in range(depth):
            ends = [other for end in ends for other in near[end]]
            tree.append(Counter(ends))
        trees.append(tree)
    found = torch.zeros(own.num_nodes, dtype=torch.float64)
    for node, tree in enumerate(trees):
        if len(near[node]) < 2:
            continue
        sizes = sum(decay**a * ends.total() for a, ends in enumerate(tree))
        below = sizes * sum(decay**b for b in range(depth)) - 1
        above = 0.0
        for other in near[node]:
            for a, ends in enumerate(tree):
                for b, others in enumerate(trees[other]):
                    above += decay ** (a + b) * sum(ends[w] for w in others if w in ends)
        found[node] = above / below / len(near[node])
    return found


def by_products(own: Adjacency, depth: int) -> Tensor:
    """From sparse powers of the adjacency matrix, all rows at once."""
    matrix, degrees = to_scipy(own), own.degrees.numpy()
    decay = own.num_nodes / len(own.nodes)
    power, walks, ends, scale = matrix, 0, 0, 0.0
    for k in range(depth):
        power = matrix if k == 0 else power @ matrix
        walks, ends = walks + decay**k * power, ends + decay**k * (power > 0).astype(float)
        scale += decay**k
    above = walks.multiply(matrix @ ends).sum(1)
    below = walks.sum(1) * scale - 1
    found = np.where(degrees > 1, above / np.maximum(below * degrees, 1e-12), 0)
    return torch.from_numpy(found)


def touched(own: Adjacency, depth: int) -> int:
    """How many neighbours a walk over trees of depth 1 or 2 reads."""
    degrees = own.degrees.double().numpy()
    matrix = to_scipy(own)
    if depth == 1:
        return int((degrees**2).sum())
    ends = 0.0
    for start in range(0, own.num_nodes, ROWS):
        power = matrix[start : start + ROWS] @ matrix
        ends += float(((power > 0).astype(float) @ degrees).sum())
    return int(ends + 3 * (degrees**2).sum() + degrees.sum())


def nothing() -> None: ...


def peers(rounds: int) -> list[dict[str, Any]]:
    """A row for each graph of few nodes, depth and peer."""
    rows = []
    for kind in KINDS:
        own = graph(kind, SMALL)
        plain = nx.Graph(own.edges.T.tolist())
        plain.add_nodes_from(range(SMALL))
        for depth in (1, 2):
            calls: dict[str, Callable[[], Tensor]] = {
                "plain Python": lambda own=own, depth=depth: by_sets(own, depth),
                "sparse products": lambda own=own, depth=depth: by_products(own, depth),
            }
            if depth == 1:

                def clustering(plain: nx.Graph = plain) -> Tensor:
                    found = nx.clustering(plain)
                    return torch.tensor([found[node] for node in range(SMALL)]).double()

                calls["networkx"] = clustering

            def ours(own: Adjacency = own, depth: int = depth) -> Tensor:
                return topological_concentration(own, depth)

            for call in calls.values():
                torch.testing.assert_close(call(), ours(), rtol=1e-6, atol=1e-9)
            timed = {name: (call, nothing) for name, call in calls.items()}
            base, multiples = beside((ours, nothing), timed, rounds, gpu=False)
            rows += [
                {
                    "graph": kind,
                    "depth": depth,
                    "peer": name,
                    "ours": base,
                    "ratio": statistics.median(found),
                }
                for name, found in multiples.items()
            ]
    return rows


def large(nodes: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each graph of many nodes and what is computed for all of them."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(nodes, dtype=torch.float64)
    for kind in KINDS:
        own = graph(kind, nodes)
        calls: dict[str, tuple[Callable[[], Tensor], int | None]] = {
            "depth 1": (lambda own=own: topological_concentration(own), touched(own, 1)),
            "depth 2": (lambda own=own: topological_concentration(own, 2), touched(own, 2)),
            "approximate": (
                lambda own=own: approximate_topological_concentration(own, generator),
                None,
            ),
            "ego density": (lambda own=own: ego_density(own), None),
        }
        floor = median(lambda own=own: values[own.nodes].sum(), 7) / len(own.nodes)
        for name, (call, reads) in calls.items():
            row = {"graph": kind, "nodes": nodes, "edges": own.num_edges, "what": name}
            row |= {"highest degree": int(own.degrees.max()), "touched": reads}
            took = median(call, rounds)
            rows.append(row | {"seconds": took, "floor": reads and reads * floor})
    return rows


def median(call: Callable[[], Tensor], rounds: int) -> float:
    """Median seconds of a call."""
    times = repeats(call, nothing, False)
    return statistics.median(seconds(call, nothing, times, False) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and fewer nodes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1 if given.quick else 3
    beside_peers = in_a_process(1, peers, rounds)
    alone = in_a_process(1, large, LARGE // 10 if given.quick else LARGE, rounds)
    show(
        f"{SMALL} nodes, beside this library",
        ("graph", "depth", "peer", "ratio"),
        [(row["graph"], row["depth"], row["peer"], f"{row['ratio']:.1f}") for row in beside_peers],
    )
    show(
        f"{alone[0]['nodes']} nodes, by this library",
        ("graph", "edges", "hub", "what", "seconds", "touched", "over floor"),
        [
            (
                *(row[name] for name in ("graph", "edges", "highest degree", "what")),
                f"{row['seconds']:.2f}",
                "" if row["touched"] is None else f"{row['touched']:.2e}",
                "" if row["floor"] is None else f"{row['seconds'] / row['floor']:.1f}",
            )
            for row in alone
        ],
    )
    write(given.json, rounds=rounds, peers=beside_peers, alone=alone)


if __name__ == "__main__":
    main()
