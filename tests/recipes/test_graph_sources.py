"""Where recipes on graphs have these from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.graphs import NamedGraph
from polypath.recipes.graph_sources import (
    CORA,
    check_names,
    chosen,
    has_cora,
    keep,
    kept,
    read,
)


def small(**parts: torch.Tensor) -> NamedGraph:
    return NamedGraph(torch.tensor([[0, 1], [1, 0]]), ("a", "b", "alone"), **parts)


def with_cora(folder: Path) -> Path:
    (folder / CORA).mkdir()
    (folder / CORA / "ind.cora.x").touch()
    return folder


def test_a_graph_is_read_as_it_was_kept(tmp_path: Path) -> None:
    graph = small(x=torch.rand(3, 2), y=torch.tensor([1, 0, -1]))
    keep(graph, tmp_path / "graph.safetensors")
    again = read(tmp_path / "graph.safetensors")
    assert torch.equal(again.edge_index, graph.edge_index)
    assert tuple(again.names) == tuple(graph.names)
    assert again.x is not None and again.y is not None
    assert torch.equal(again.x, graph.x) and torch.equal(again.y, graph.y)  # type: ignore[arg-type]


def test_a_graph_without_features_or_classes_has_none_when_read(tmp_path: Path) -> None:
    keep(small(), tmp_path / "graph.safetensors")
    again = read(tmp_path / "graph.safetensors")
    assert again.x is None and again.y is None and again.num_nodes == 3


def test_each_graph_is_made_once_and_what_is_drawn_anew_has_no_file(tmp_path: Path) -> None:
    made = []

    def make() -> NamedGraph:
        made.append(1)
        return small()

    for _ in range(2):
        paths = kept({"own": make, "drawn": None}, tmp_path)
    assert made == [1] and paths["drawn"] is None
    assert paths["own"] is not None and read(paths["own"]).num_nodes == 3


def test_cora_is_taken_where_it_is_and_by_its_name_anywhere(tmp_path: Path) -> None:
    known = {CORA: small, "other": None}
    assert set(chosen(known, (), tmp_path)) == {"other"}
    assert set(chosen(known, (CORA,), tmp_path)) == {CORA}
    assert set(chosen(known, (), with_cora(tmp_path))) == {CORA, "other"}


def test_a_folder_of_cora_without_features_is_not_cora(tmp_path: Path) -> None:
    (tmp_path / CORA).mkdir()
    assert not has_cora(tmp_path)


def test_an_unknown_graph_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'corra'; did you mean 'cora'"):
        check_names(("corra",), (CORA, "imports"))
