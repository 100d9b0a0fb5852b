from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.graphs import Adjacency, heterophilous, import_graph, planetoid


def test_cora_is_cora(data_dir: Path) -> None:
    graph = planetoid(data_dir, "cora")
    assert (graph.num_nodes, Adjacency.of(graph).num_edges) == (2708, 5278)
    assert graph.x is not None and graph.y is not None
    assert graph.x.shape == (2708, 1433) and int(graph.y.max()) == 6
    torch.testing.assert_close(graph.x.sum(1), torch.ones(2708))


def test_pubmed_is_a_graph_alone(data_dir: Path) -> None:
    graph = planetoid(data_dir, "pubmed")
    assert (graph.num_nodes, Adjacency.of(graph).num_edges, graph.x) == (19717, 44324, None)


def test_tolokers(data_dir: Path) -> None:
    graph = heterophilous(data_dir, "tolokers")
    assert (graph.num_nodes, Adjacency.of(graph).num_edges) == (11758, 519000)


def test_modules_import_each_other() -> None:
    graph = import_graph()
    adjacency = Adjacency.of(graph)
    place = list(graph.names).index
    pairs = [("json", "json.decoder"), ("json.decoder", "re"), ("dataclasses", "inspect")]
    found = adjacency.has(torch.tensor([[place(a), place(b)] for a, b in pairs]).T)
    assert found.all() and graph.num_nodes > 300
    assert not adjacency.has(torch.tensor([[place("json.decoder")], [place("tomllib")]])).any()


def test_absent_data_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'kora'; cora, citeseer, pubmed"):
        planetoid(tmp_path, "kora")
    with pytest.raises(InputError, match=r"ind.cora.graph is not there"):
        planetoid(tmp_path, "cora")
    with pytest.raises(InputError, match="the folder has none"):
        heterophilous(tmp_path, "tolokers")
