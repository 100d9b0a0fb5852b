import warnings
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency, sampling, undirected
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.ncn import NCN, NCNConfig
from polypath.graphs.sampling import NeighbourSampler, link_loader, neighbour_loader


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directed(graph: nx.Graph) -> nx.DiGraph:
    """Some of the edges in either direction, with a self-loop."""
    found = nx.DiGraph([(i, j) if (i + j) % 3 else (j, i) for i, j in graph.edges])
    found.add_nodes_from(graph)
    found.add_edge(0, 0)
    return found


def index_of(graph: nx.DiGraph) -> Tensor:
    return torch.tensor(list(graph.edges), dtype=torch.int64).T


def data_of(graph: nx.DiGraph) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.data import Data
    index, nodes = index_of(graph), len(graph)
    return Data(
        edge_index=index,
        num_nodes=nodes,
        x=torch.randn(nodes, 3),
        edge_attr=torch.randn(index.shape[1], 2),
        name="a graph",
    )


@given(graphs(), st.integers(1, 3), st.integers(0, 2**20))
def test_all_neighbours_are_those_of_a_walk_backwards(
    graph: nx.Graph, depth: int, seed: int
) -> None:
    network = directed(graph)
    nodes = torch.randperm(len(network), generator=generator(seed))[: 1 + seed % 3]
    index = index_of(network)
    data = type("Data", (), {"edge_index": index, "num_nodes": len(network)})()
    found = NeighbourSampler(data, [-1] * depth).sample(nodes, generator())
    met = list(nodes.tolist())
    edges: set[tuple[int, int]] = set()
    for node in list(met):
        reached = nx.single_source_shortest_path_length(network.reverse(), node, depth)
        met += [other for other in reached if other not in met]
        edges |= {(i, j) for i, j in network.edges if reached.get(j, depth) < depth}
    assert found.nodes[: len(nodes)].tolist() == nodes.tolist()
    assert sorted(found.nodes.tolist()) == sorted(met)
    pairs = found.nodes[found.edge_index]
    assert {tuple(pair) for pair in pairs.T.tolist()} == edges
    assert torch.equal(index[:, found.edges], pairs) and pairs.shape[1] == len(edges)


@given(graphs(least=4), st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**20))
def test_counts_are_kept_without_repeats(
    graph: nx.Graph, first: int, second: int, seed: int
) -> None:
    adjacency = adjacency_of(graph)
    found = NeighbourSampler(adjacency, [first, second]).sample(
        torch.tensor([3, 0]), generator(seed)
    )
    pairs = found.nodes[found.edge_index]
    assert adjacency.has(pairs).all() and len(found.edges.unique()) == len(found.edges)
    assert len(found.nodes.unique()) == len(found.nodes)
    degrees, entered = adjacency.degrees, pairs[1].bincount(minlength=len(graph))
    around = set(pairs[0, : int(degrees[[0, 3]].clamp_max(first).sum())].tolist()) - {0, 3}
    for node in range(len(graph)):
        most = first if node in (0, 3) else second if node in around else 0
        assert entered[node] == min(most, int(degrees[node]))


def test_every_set_of_neighbours_has_the_same_chance() -> None:
    star = adjacency_of(nx.star_graph(5))
    sampler, draws = NeighbourSampler(star, [2]), generator()
    counts: dict[frozenset[int], int] = {}
    for _ in range(3000):
        found = sampler.sample(torch.tensor([0]), draws)
        own = frozenset(found.nodes[1:].tolist())
        counts[own] = counts.get(own, 0) + 1
    assert len(counts) == 10 and all(len(own) == 2 for own in counts)
    chi = sum((count - 300) ** 2 / 300 for count in counts.values())
    assert chi < 27.9  # of 9 degrees of freedom: once in a thousand


def test_a_seed_gives_the_same_draw() -> None:
    sampler = NeighbourSampler(adjacency_of(nx.gnp_random_graph(60, 0.3, seed=1)), [3, 3])
    nodes = torch.arange(5)
    one, same, other = (sampler.sample(nodes, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.edge_index, same.edge_index) and torch.equal(one.nodes, same.nodes)
    assert not torch.equal(one.edges, other.edges)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_nodes_have_the_form_of_torch_geometric(shuffle: bool) -> None:
    data = data_of(directed(nx.karate_club_graph()))
    nodes = torch.arange(3, 25)
    loader = neighbour_loader(data, [2, 2], 8, nodes, shuffle, generator())
    batches = list(loader)
    assert len(loader) == len(batches) == 3  # type: ignore[arg-type]
    asked = torch.cat([batch.n_id[: batch.batch_size] for batch in batches])
    assert torch.equal(asked.sort().values, nodes) and torch.equal(asked, nodes) is not shuffle
    for batch in batches:
        assert torch.equal(nodes[batch.input_id], batch.n_id[: batch.batch_size])
        assert torch.equal(batch.x, data.x[batch.n_id]) and batch.name == "a graph"
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert batch.num_nodes == len(batch.n_id) and batch.validate()
    again = list(neighbour_loader(data, [2, 2], 8, nodes, shuffle, generator()))
    assert all(torch.equal(a.e_id, b.e_id) for a, b in zip(batches, again, strict=True))


def test_batches_of_pairs_have_the_form_of_torch_geometric() -> None:
    data = data_of(directed(nx.karate_club_graph()))
    pairs, labels = torch.randint(34, (2, 50)), torch.randint(2, (50,))
    batches = list(link_loader(data, [3], pairs, labels, 16, True, generator()))
    order = torch.cat([batch.input_id for batch in batches])
    assert torch.equal(order.sort().values, torch.arange(50))
    for batch in batches:
        assert torch.equal(batch.n_id[batch.edge_label_index], pairs[:, batch.input_id])
        assert torch.equal(batch.edge_label, labels[batch.input_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
    assert "edge_label" not in next(iter(link_loader(data, [3], pairs)))


def test_a_predictor_says_the_same_in_a_whole_neighbourhood() -> None:
    graph = adjacency_of(nx.random_regular_graph(3, 200, seed=0))
    x, pairs = torch.randn(200, 4, dtype=torch.float64), torch.tensor([[0, 5, 9], [7, 80, 3]])
    config = NCNConfig(EncoderConfig(4, convolution="pure-gcn", layers=1, dim=8))
    own = NCN(config).double().eval()
    data = data_of(nx.DiGraph(graph.edge_index.T.tolist()))
    data.edge_index, data.edge_attr, data.x = graph.edge_index, None, x
    (batch,) = link_loader(data, [-1, -1, -1], pairs, batch_size=3)
    assert batch.num_nodes < 150
    small = Adjacency.of(undirected(batch.edge_index, batch.num_nodes), batch.num_nodes)
    torch.testing.assert_close(
        own.score(small, batch.x, batch.edge_label_index), own.score(graph, x, pairs)
    )


def test_the_loaders_of_torch_geometric_are_taken_where_they_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = data_of(directed(nx.karate_club_graph()))
    from torch_geometric import loader

    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(sampling, "_has_pyg_lib", lambda: True)
    for name in ("NeighborLoader", "LinkNeighborLoader"):
        monkeypatch.setattr(
            loader, name, lambda given, name=name, **options: asked.append((name, options))
        )
    neighbour_loader(data, (2, 3), 5, shuffle=True)
    link_loader(data, (2, 3), torch.tensor([[0], [1]]), batch_size=7)
    assert [name for name, _ in asked] == ["NeighborLoader", "LinkNeighborLoader"]
    assert [options["batch_size"] for _, options in asked] == [5, 7]
    assert all(options["num_neighbors"] == [2, 3] for _, options in asked)


def test_wrong_input_is_told() -> None:
    path = adjacency_of(nx.path_graph(3))
    for counts in ([], [3, -2]):
        with pytest.raises(InputError, match="counts="):
            NeighbourSampler(path, counts)
    sampler = NeighbourSampler(path, [1])
    with pytest.raises(InputError, match="different ids"):
        sampler.sample(torch.tensor([1, 1]), generator())
    with pytest.raises(InputError, match="from 1 to 3; ids are 0 … 2"):
        sampler.sample(torch.tensor([1, 3]), generator())
    with pytest.raises(InputError, match="batch_size=0"):
        neighbour_loader(data_of(nx.DiGraph([(0, 1)])), [1], 0)
