from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.graphs import read_edges, read_pairs


@pytest.mark.parametrize(
    "text",
    [
        "ada,grace\ngrace,alan\nalan,kurt\n",
        "source,target,year\nada,grace,1843\ngrace,alan,1950\n\n# aside\nalan,kurt,1936\n",
        "ada\tgrace\ngrace\talan\nalan\tkurt",
        "ada grace\ngrace  alan\nalan kurt\nkurt kurt\ngrace ada\n",
        '"ada","grace"\ngrace,alan\nalan , kurt\n',
    ],
)
def test_edge_lists_in_all_dresses(tmp_path: Path, text: str) -> None:
    (tmp_path / "edges.csv").write_text(text)
    graph = read_edges(tmp_path / "edges.csv")
    assert graph.names == ["ada", "grace", "alan", "kurt"]
    assert graph.edge_index.tolist() == [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ada,grace\nalan\n", "line 2: 'alan' has no two names"),
        ("ada,grace\n\nalan,\n", "line 3: 'alan,' has no two names"),
        ("ada,ada\n", "no edge between two different nodes"),
        ("", "no edge"),
        (b"ada,gr\xff\xfe", "not UTF-8 at byte 6"),
    ],
)
def test_what_is_no_edge_list_is_told(tmp_path: Path, text: str | bytes, told: str) -> None:
    (tmp_path / "edges.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=told):
        read_edges(tmp_path / "edges.csv")


def test_pairs_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("source,target\nada,kurt\nkurt,grace\n")
    assert read_pairs(path, ["ada", "grace", "kurt"]).tolist() == [[0, 2], [2, 1]]
    path.write_text("ada,gracé\n")
    with pytest.raises(InputError, match="line 1: no node 'gracé' in the graph; the nearest is"):
        read_pairs(path, ["ada", "grace", "kurt"])
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "absent.csv", [])
