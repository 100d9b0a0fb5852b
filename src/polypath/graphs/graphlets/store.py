"""Orbit adjacencies on disk, in files of rows, for graphs whose matrices do not fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse

from polypath.errors import InputError
from polypath.files import disk_errors, replace_file
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.graphlets.blocks import Ground, Orbits
from polypath.graphs.graphlets.matrices import checked_rows
from polypath.graphs.graphlets.orbits import OrbitPair, chosen
from polypath.graphs.kernels import array

NAME = "rows-{:010d}-{:010d}.safetensors"


def save_orbit_adjacencies(
    folder: str | Path,
    graph: Any,
    num_nodes: int | None = None,
    *,
    only: Iterable[OrbitPair] | None = None,
    rows: range | None = None,
    memory_mb: float = 1024,
    workers: int | None = None,
) -> None:
    """Write orbit adjacencies into a folder, a file for each block of rows.

    Arguments are those of `orbit_adjacency_blocks`. Values are kept in the narrowest integers that
    hold a block's. A file is written whole or not at all, and those that the folder has are not
    made again, so that what was interrupted goes on; machines that share the folder may each take
    some of the rows.
    Raises InputError where the folder has rows of another graph, and where it cannot be written.
    """
    folder, pairs = Path(folder), chosen(only)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ground = Ground.of(Adjacency.of(graph, num_nodes), pairs, workers)
    digest = _digest(ground.graph)
    told = {"graph": digest, "nodes": str(ground.graph.num_nodes)}
    asked = checked_rows(rows, ground.graph.num_nodes)
    left = np.arange(asked.start, asked.stop)
    for path in folder.glob("rows-*.safetensors"):
        if _has(path, digest, pairs):
            first, last = _rows(path)
            left = left[(left < first) | (left >= last)]
    runs = np.split(left, np.flatnonzero(np.diff(left) > 1) + 1)
    blocks = [block for run in runs for block in ground.split(run, memory_mb, workers)]
    for block, matrices in zip(blocks, ground.matrices(blocks, workers), strict=True):
        parts: dict[str, np.ndarray] = {}
        for pair, matrix in matrices.items():
            most = int(matrix.data.max(initial=0))
            parts |= {
                f"{_name(pair)}.data": matrix.data.astype(np.min_scalar_type(most)),
                f"{_name(pair)}.indices": matrix.indices,
                f"{_name(pair)}.indptr": matrix.indptr,
            }
        path = folder / NAME.format(block[0], block[-1] + 1)
        replace_file(path, partial(save_file, parts, metadata=told))


def load_orbit_adjacencies(
    folder: str | Path,
    only: Iterable[OrbitPair] | None = None,
    rows: range | None = None,
) -> Orbits:
    """Rows (R, N) of what `save_orbit_adjacencies` wrote, as it was: CSR arrays of int64.

    only, rows: all without. Raises InputError where the folder does not have them.
    """
    folder, pairs = Path(folder), chosen(only)
    files = sorted(folder.glob("rows-*.safetensors"))
    if not files:
        raise InputError(f"{folder} has no orbit adjacencies; save_orbit_adjacencies writes them")
    told = _told(files[0])
    nodes, wanted = int(told["nodes"]), checked_rows(rows, int(told["nodes"]))
    place, stop = wanted.start, wanted.stop
    empty = sparse.csr_array((0, nodes), dtype=np.int64)
    parts: dict[OrbitPair, list[sparse.csr_array]] = {pair: [empty] for pair in pairs}
    for path in files:
        first, last = _rows(path)
        if last <= place or first >= stop or not _has(path, told["graph"], pairs):
            continue
        if first > place:
            break
        for pair, matrix in _read(path, pairs, nodes).items():
            parts[pair].append(matrix[place - first : stop - first])
        place = last
    if place < stop:
        raise InputError(
            f"{folder} has not all of {', '.join(map(str, pairs))} in rows {place} … {stop - 1}; "
            "save_orbit_adjacencies writes what is missing"
        )
    return {pair: sparse.vstack(own, format="csr") for pair, own in parts.items()}


def _has(path: Path, digest: str, pairs: tuple[OrbitPair, ...]) -> bool:
    """Whether a file has these pairs; InputError where it is of another graph."""
    told = _told(path)
    if told.get("graph") != digest:
        raise InputError(f"{path} has orbits of another graph; each graph has a folder of its own")
    return set(map(_name, pairs)) <= set(told["pairs"].split())


def _told(path: Path) -> dict[str, str]:
    with _opened(path) as file:
        names = {key.partition(".")[0] for key in file.keys()}  # noqa: SIM118 - no mapping
        return {**(file.metadata() or {}), "pairs": " ".join(names)}


def _read(path: Path, pairs: tuple[OrbitPair, ...], nodes: int) -> Orbits:
    found = {}
    with _opened(path) as file:
        for pair in pairs:
            data, indices, indptr = (
                file.get_tensor(f"{_name(pair)}.{part}") for part in ("data", "indices", "indptr")
            )
            found[pair] = sparse.csr_array(
                (data.astype(np.int64), indices, indptr), shape=(len(indptr) - 1, nodes)
            )
    return found


def _rows(path: Path) -> tuple[int, int]:
    """The first row that a file has, and the one after its last."""
    _, first, last = path.stem.split("-")
    return int(first), int(last)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _name(pair: OrbitPair) -> str:
    return "-".join(map(str, pair))


def _digest(graph: Adjacency) -> str:
    """The same for the same neighbour lists alone."""
    found = hashlib.sha256(array(graph.starts).tobytes())
    found.update(array(graph.nodes).tobytes())
    return found.hexdigest()
