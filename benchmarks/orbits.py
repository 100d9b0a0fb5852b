"""What all 28 orbit adjacencies of a graph cost beside the cube of its adjacency, and a peer.

    python benchmarks/orbits.py [--quick] [--data FOLDER] [--threads N] [--peer PYTHON]
                                [--stream FOLDER] [--json FILE]

The floor is SciPy's A·A·A, which has an entry for every pair within three hops; it is timed just
before and just after each contender, in CPU seconds of the process; medians over rounds. A peer is
an interpreter that has the package `gradco`: it counts the same graph in a process of its own, and
every integer is compared. With --stream, tolokers is written to a folder in blocks of rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import sparse
from timing import beside, in_a_process, write

from polypath.graphs import Adjacency, heterophilous, planetoid, undirected
from polypath.graphs.graphlets import (
    edge_graphlet_degree_vectors,
    graphlet_degree_vectors,
    orbit_adjacencies,
    save_orbit_adjacencies,
)
from polypath.graphs.heuristics import to_scipy

GRAPHS = ("cora", "power law", "pubmed")
PEER_BYTES = 52
"""What the peer keeps for each pair of nodes."""
PEER_SECONDS = 600
MEMORY_MB = 1024

PEER = """
import hashlib, json, resource, sys, time
import numpy as np
from scipy import sparse
import gradco

source, target, nodes = (np.load(sys.argv[1])[name] for name in ("source", "target", "nodes"))
matrix = sparse.csr_array((np.ones(len(source)), (source, target)), shape=(nodes, nodes))
start = time.perf_counter()
counter = gradco.Counter(matrix)
counter.count()
found = list(counter.generate_orbit_adjacencies())
took = time.perf_counter() - start
digests = {}
for *pair, own in found:
    own = sparse.csr_array(own)
    own.eliminate_zeros()
    own.sort_indices()
    digest = hashlib.sha256()
    for part in (own.indptr, own.indices, own.data):
        digest.update(np.asarray(part).astype(np.int64).tobytes())
    digests["-".join(map(str, pair))] = digest.hexdigest()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": took, "peak": peak, "digests": digests}))
"""


def graph_of(name: str, data: Path | None) -> Adjacency:
    if name == "power law":
        graph = nx.powerlaw_cluster_graph(6000, 5, 0.3, seed=0)
        return Adjacency.of(undirected(torch.tensor(list(graph.edges)).T))
    return Adjacency.of(planetoid(name, data))


def peak() -> int:
    """Bytes that this process has had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, data: Path | None, rounds: int) -> list[dict[str, Any]]:
    """One row: the floor, its multiples, wall seconds, and peak memory."""
    graph = graph_of(name, data)
    matrix = to_scipy(graph)
    imported = peak()
    orbit_adjacencies(graph)  # compiles
    reached = peak()

    def nothing() -> None: ...

    calls: dict[str, Any] = {
        "all 28": (lambda: orbit_adjacencies(graph), nothing),
        "of nodes": (lambda: graphlet_degree_vectors(graph), nothing),
        "of edges": (lambda: edge_graphlet_degree_vectors(graph), nothing),
    }
    base: Any = (lambda: matrix @ matrix @ matrix, nothing)
    took, multiples = beside(base, calls, rounds, gpu=False)
    start = time.perf_counter()
    found = orbit_adjacencies(graph)
    wall = time.perf_counter() - start
    return [
        {
            "graph": name,
            "nodes": graph.num_nodes,
            "edges": graph.num_edges,
            "entries": sum(own.nnz for own in found.values()),
            "cube": took,
            "seconds": wall,
            "before": imported,
            "peak": reached,
            "digests": {"-".join(map(str, pair)): digest(own) for pair, own in found.items()},
            **{f"{key}, over the cube": statistics.median(own) for key, own in multiples.items()},
        }
    ]


def digest(matrix: sparse.csr_array) -> str:
    """The same for the same integers in the same places alone."""
    found = hashlib.sha256()
    for part in (matrix.indptr, matrix.indices, matrix.data):
        found.update(part.astype(np.int64).tobytes())
    return found.hexdigest()


def beside_peer(row: dict[str, Any], python: Path, data: Path | None) -> dict[str, Any]:
    """What the peer took for the same graph, and whether its integers are the same."""
    needed = PEER_BYTES * row["nodes"] ** 2
    if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
        return {"peer": f"would take {needed / 1e9:.0f} GB"}
    graph = graph_of(row["graph"], data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edges.npz"
        source, target = graph.edge_index.numpy()
        np.savez(path, source=source, target=target, nodes=graph.num_nodes)
        try:
            asked = [str(python), "-c", PEER, str(path)]
            done = subprocess.run(
                asked, capture_output=True, text=True, check=True, timeout=PEER_SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"peer": f"more than {PEER_SECONDS} s"}
    told = json.loads(done.stdout.splitlines()[-1])
    return {
        "peer": told["seconds"],
        "peer peak": told["peak"],
        "same": told["digests"] == row["digests"],
    }


def stream(folder: Path, data: Path | None) -> list[dict[str, Any]]:
    """One row: tolokers, written in blocks of rows."""
    graph = Adjacency.of(heterophilous("tolokers", data))
    imported, start = peak(), time.perf_counter()
    save_orbit_adjacencies(folder, graph, memory_mb=MEMORY_MB)
    wall = time.perf_counter() - start
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return [
        {
            "graph": "tolokers",
            "nodes": graph.num_nodes,
            "edges": graph.num_edges,
            "seconds": wall,
            "before": imported,
            "peak": peak(),
            "files": len(sizes),
            "on disk": sum(sizes),
        }
    ]


def table(rows: Iterable[dict[str, Any]]) -> Table:
    found = Table(title="all 28 orbit adjacencies", header_style="bold")
    multiples = [f"{key}, over the cube" for key in ("all 28", "of nodes", "of edges")]
    columns = ["graph", "entries", "seconds", "cube", *multiples, "peak", "peer", "peer peak"]
    for column in [*columns, "same"]:
        found.add_column(column, justify="left" if column == "graph" else "right")
    for row in rows:
        cells = [row.get(column, "") for column in [*columns, "same"]]
        for place, column in enumerate([*columns, "same"]):
            if column.endswith("peak") and cells[place]:
                cells[place] = f"{cells[place] / 1e9:.2f} GB"
            elif isinstance(cells[place], float):
                cells[place] = f"{cells[place]:.3g}"
        found.add_row(*map(str, cells))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--data", type=Path, help="a folder with cora and pubmed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=GRAPHS, help="some of the graphs, or none")
    parser.add_argument("--peer", type=Path, help="a Python that has gradco")
    parser.add_argument("--stream", type=Path, help="an empty folder for tolokers, of some GB")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    rounds, rows = 3 if given.quick else 7, []
    for name in given.only:
        rows += in_a_process(given.threads, measure, name, given.data, rounds)
        if given.peer:
            rows[-1] |= beside_peer(rows[-1], given.peer, given.data)
    if given.stream:
        rows += in_a_process(given.threads, stream, given.stream, given.data)
    Console(width=160).print(table(rows))
    for row in rows:
        row.pop("digests", None)
        if "on disk" in row:
            print(f"{row['files']} files of {row['on disk'] / 1e9:.1f} GB")
    write(given.json, rounds=rounds, rows=rows)


if __name__ == "__main__":
    main()
