import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphs_at_random import adjacency_of, all_pairs, graphs
from polypath.errors import InputError
from polypath.graphs import Ragged, common_neighbours, common_sums, overlap
from polypath.graphs.overlap import MUCH_LONGER, reference_overlap


def lists(found: Ragged) -> list[list[int]]:
    return [own.tolist() for own in found.nodes.split(found.counts.tolist())]


@given(graphs(least=2), st.data())
def test_shared_and_own_neighbours_are_those_of_sets(graph: nx.Graph, data: st.DataObject) -> None:
    every = all_pairs(len(graph)).T.tolist()
    pairs = data.draw(st.lists(st.sampled_from(every), max_size=20))  # with repeats, or none
    chosen = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    wanted = [(set(graph[i]), set(graph[j])) for i, j in pairs]
    for find in (overlap, reference_overlap):
        found = find(adjacency_of(graph), chosen)
        assert lists(found.common) == [sorted(a & b) for a, b in wanted]
        assert lists(found.left) == [sorted(a - b) for a, b in wanted]
        assert lists(found.right) == [sorted(b - a) for a, b in wanted]
        assert found.common.rows.tolist() == [
            row for row, (a, b) in enumerate(wanted) for _ in a & b
        ]


def test_a_hub_is_searched() -> None:
    graph = nx.star_graph(20 * MUCH_LONGER)  # 0 and all others
    graph.add_edges_from([(1, node) for node in (3, 7, 50)])
    adjacency, pairs = adjacency_of(graph), torch.tensor([[0, 1], [1, 0]])
    found, wanted = overlap(adjacency, pairs), reference_overlap(adjacency, pairs)
    assert lists(found.common) == [[3, 7, 50]] * 2
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.nodes, other.nodes) and torch.equal(one.starts, other.starts)


@given(graphs(least=2))
def test_sums_and_pools_are_products_of_matrices(graph: nx.Graph) -> None:
    pairs = all_pairs(len(graph))
    h = torch.randn(len(graph), 3, dtype=torch.float64, requires_grad=True)
    dense = torch.from_numpy(nx.to_numpy_array(graph))
    wanted = (dense[pairs[0]] * dense[pairs[1]]) @ h
    adjacency = adjacency_of(graph)
    pooled = common_neighbours(adjacency, pairs).pool(h)
    torch.testing.assert_close(pooled, wanted)
    torch.testing.assert_close(common_sums(adjacency, pairs, h.detach()), wanted.detach())
    slope = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(pooled, h, slope, allow_unused=True)[0]
        if pooled.requires_grad
        else torch.zeros_like(h),
        torch.autograd.grad(wanted, h, slope)[0],
    )


def test_weights_of_found_nodes_have_gradients() -> None:
    shared = common_neighbours(adjacency_of(nx.complete_graph(5)), torch.tensor([[0], [1]]))
    weights = torch.tensor([0.5, 2.0, -1.0], requires_grad=True)
    h = torch.arange(10.0).view(5, 2)
    pooled = shared.pool(h, weights)
    torch.testing.assert_close(pooled, (weights[:, None] * h[2:]).sum(0)[None])
    (slope,) = torch.autograd.grad(pooled.sum(), weights)
    torch.testing.assert_close(slope, h[2:].sum(1))


def test_wrong_input_is_told() -> None:
    adjacency = adjacency_of(nx.path_graph(3))
    with pytest.raises(InputError, match="a node with itself"):
        overlap(adjacency, torch.tensor([[1], [1]]))
    with pytest.raises(InputError, match=r"values \(2, 1\); \(3, C\)"):
        common_sums(adjacency, torch.tensor([[0], [1]]), torch.ones(2, 1))
