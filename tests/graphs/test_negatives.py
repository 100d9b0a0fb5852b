import networkx as nx
import pytest
import torch

from graphs_at_random import adjacency_of
from polypath.errors import InputError
from polypath.graphs import Adjacency, hard_negatives, resource_allocation


def negatives(
    graph: Adjacency, positives: torch.Tensor, count: int, **options: object
) -> torch.Tensor:
    return hard_negatives(graph, positives, count, torch.Generator().manual_seed(0), **options)


def test_each_positive_has_its_own() -> None:
    graph = adjacency_of(nx.karate_club_graph())
    positives = torch.tensor([[0, 5, 9], [9, 33, 14]])
    found = negatives(graph, positives, 6)
    assert found.shape == (2, 3, 6)
    assert torch.equal(found[0, :, :3], positives[0, :, None].expand(-1, 3))
    assert torch.equal(found[1, :, 3:], positives[1, :, None].expand(-1, 3))
    assert not graph.joined(positives).has(found.flatten(1)).any()
    for own in found[1, :, :3]:
        assert len(own.unique()) == 3


@pytest.mark.parametrize("half", [1, 4, 9])
def test_the_others_are_those_that_rank_highest(half: int) -> None:
    graph, end = adjacency_of(nx.karate_club_graph()), 3
    x = torch.randn(34, 5, dtype=torch.float64)
    others = torch.tensor([node for node in range(34) if node != end])
    steps = torch.from_numpy(nx.to_numpy_array(nx.karate_club_graph(), weight=None))
    walks = torch.linalg.inv(torch.eye(34) - 0.85 * steps / steps.sum(1, keepdim=True))
    scores = torch.stack(
        [
            resource_allocation(graph, torch.stack([torch.full_like(others, end), others])),
            walks[end, others],
            torch.cosine_similarity(x[end], x[others], dim=1),
        ]
    )
    # Of equals, chance decides: the best and the worst rank that each may have got.
    high = (scores[:, None] > scores[..., None]).sum(2).min(0).values
    low = (scores[:, None] >= scores[..., None]).sum(2).min(0).values - 1
    positives = torch.tensor([[end], [24]])
    taken = torch.isin(others, negatives(graph, positives, 2 * half, x=x)[1, 0, :half])
    free = ~graph.joined(positives).has(torch.stack([torch.full_like(others, end), others]))
    assert taken.sum() == half and not (taken & ~free).any()
    assert high[taken].max() <= low[free & ~taken].min()


def test_known_edges_are_never_negatives() -> None:
    whole = adjacency_of(nx.karate_club_graph())
    graph = whole.without(torch.tensor([[0, 2], [1, 3]]))
    found = negatives(graph, torch.tensor([[0], [1]]), 20, known=whole)
    assert not whole.has(found.flatten(1)).any()


def test_ties_are_broken_by_chance() -> None:
    graph, positives = adjacency_of(nx.cycle_graph(40)), torch.tensor([[0], [20]])
    drawn = {
        tuple(
            hard_negatives(graph, positives, 8, torch.Generator().manual_seed(seed))[1, 0].tolist()
        )
        for seed in range(5)
    }
    assert len(drawn) > 1


def test_wrong_numbers_are_told() -> None:
    graph = adjacency_of(nx.star_graph(5))
    with pytest.raises(InputError, match="per_positive=3"):
        negatives(graph, torch.tensor([[1], [2]]), 3)
    with pytest.raises(InputError, match="4 others are wanted of each end; one has only 3"):
        negatives(graph, torch.tensor([[1], [2]]), 8)
