from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphlet_references import star
from graphs_at_random import adjacency_of
from polypath.errors import InputError
from polypath.graphs.graphlets import (
    ORBIT_PAIRS,
    load_orbit_adjacencies,
    orbit_adjacencies,
    save_orbit_adjacencies,
    store,
)
from polypath.graphs.graphlets.blocks import Orbits

KARATE = adjacency_of(nx.karate_club_graph())
WHOLE = orbit_adjacencies(KARATE)


def assert_same(found: Orbits, wanted: Orbits, rows: slice = slice(None)) -> None:
    for pair, matrix in found.items():
        assert matrix.dtype == np.int64
        np.testing.assert_array_equal(matrix.toarray(), wanted[pair].toarray()[rows])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orbits") / "karate"
    save_orbit_adjacencies(folder, KARATE, memory_mb=0.05)
    assert len(list(folder.iterdir())) > 5
    return folder


def test_what_is_saved_is_loaded(saved: Path) -> None:
    found = load_orbit_adjacencies(saved)
    assert tuple(found) == ORBIT_PAIRS
    assert_same(found, WHOLE)


@given(st.integers(0, 34), st.data())
def test_rows_are_loaded_from_the_files_that_have_them(
    saved: Path, first: int, data: st.DataObject
) -> None:
    stop = data.draw(st.integers(first, 34))
    found = load_orbit_adjacencies(saved, [(3, 4, 4), (1, 3, 3)], range(first, stop))
    assert list(found) == [(3, 4, 4), (1, 3, 3)]
    assert_same(found, WHOLE, slice(first, stop))


def test_what_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def fails_at_the_third(path: Path, write: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        replace(path, write)

    replace = store.replace_file
    monkeypatch.setattr(store, "replace_file", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        save_orbit_adjacencies(tmp_path, KARATE, memory_mb=0.1)
    with pytest.raises(InputError, match=r"has not all of \(2, 1, 1\) in rows \d+ … 33"):
        load_orbit_adjacencies(tmp_path, [(2, 1, 1)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(store, "replace_file", replace)
    save_orbit_adjacencies(tmp_path, KARATE, memory_mb=0.3)  # other blocks than before
    assert len(before) == 2
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert_same(load_orbit_adjacencies(tmp_path), WHOLE)


def test_shares_of_rows_and_later_pairs_come_together(tmp_path: Path) -> None:
    save_orbit_adjacencies(tmp_path, KARATE, rows=range(10, 34), only=[(2, 1, 1)])
    save_orbit_adjacencies(tmp_path, KARATE, rows=range(0, 10), only=[(2, 1, 1)])
    assert len(list(tmp_path.iterdir())) == 2
    assert_same(load_orbit_adjacencies(tmp_path, [(2, 1, 1)]), WHOLE)
    with pytest.raises(InputError, match=r"has not all of \(2, 6, 6\) in rows 0 … 33"):
        load_orbit_adjacencies(tmp_path, [(2, 6, 6)])
    save_orbit_adjacencies(tmp_path, KARATE, only=[(2, 6, 6)])
    assert_same(load_orbit_adjacencies(tmp_path, [(2, 6, 6)]), WHOLE)


def test_large_counts_come_back(tmp_path: Path) -> None:
    pair = (1, 6, 7)
    save_orbit_adjacencies(tmp_path, star(200_000), only=[pair])
    found = load_orbit_adjacencies(tmp_path, [pair])[pair]
    assert found.max() == 199_999 * 199_998 // 2 > 2**34


def test_wrong_folders_are_told(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no orbit adjacencies; save_orbit_adjacencies"):
        load_orbit_adjacencies(tmp_path)
    with pytest.raises(InputError, match="of another graph; each graph has a folder of its own"):
        save_orbit_adjacencies(saved, adjacency_of(nx.path_graph(34)))
    (tmp_path / "rows-0000000000-0000000034.safetensors").write_bytes(b"not that")
    with pytest.raises(InputError, match="cannot be read"):
        load_orbit_adjacencies(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_orbit_adjacencies(tmp_path / "file" / "folder", KARATE)
