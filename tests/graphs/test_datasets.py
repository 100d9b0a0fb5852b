from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.graphs import Adjacency, heterophilous, import_graph, planetoid


def test_cora_is_cora(data_dir: Path) -> None:
    graph = planetoid("cora", data_dir)
    assert (graph.num_nodes, Adjacency.of(graph).num_edges) == (2708, 5278)
    assert graph.x is not None and graph.y is not None
    assert graph.x.shape == (2708, 1433) and int(graph.y.max()) == 6
    torch.testing.assert_close(graph.x.sum(1), torch.ones(2708))


def test_pubmed_is_a_graph_alone(data_dir: Path) -> None:
    graph = planetoid("pubmed", data_dir)
    assert (graph.num_nodes, Adjacency.of(graph).num_edges, graph.x) == (19717, 44324, None)


def test_tolokers(data_dir: Path) -> None:
    graph = heterophilous("tolokers", data_dir)
    assert (graph.num_nodes, Adjacency.of(graph).num_edges) == (11758, 519000)


def test_modules_import_each_other() -> None:
    graph = import_graph()
    adjacency = Adjacency.of(graph)
    place = list(graph.names).index
    pairs = [("json", "json.decoder"), ("json.decoder", "re"), ("dataclasses", "inspect")]
    found = adjacency.has(torch.tensor([[place(a), place(b)] for a, b in pairs]).T)
    assert found.all() and graph.num_nodes > 300
    assert not adjacency.has(torch.tensor([[place("json.decoder")], [place("tomllib")]])).any()


def test_the_environment_names_the_folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPATH_DATA", str(data_dir))
    assert planetoid("cora").num_nodes == 2708


def test_absent_data_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'kora'; cora, citeseer, pubmed"):
        planetoid("kora", tmp_path)
    with pytest.raises(InputError, match="the folder has none"):
        heterophilous("tolokers", tmp_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.delenv("POLYPATH_DATA", raising=False)
    monkeypatch.setattr("polypath.graphs.datasets.FETCHED", tmp_path)
    monkeypatch.setattr("torch_geometric.datasets.planetoid.fs.cp", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(InputError, match="Planetoid's cora cannot be fetched: no route to host"):
        planetoid("cora")
    with pytest.raises(InputError, match=r"tolokers\.npz cannot be fetched"):
        heterophilous("tolokers")
