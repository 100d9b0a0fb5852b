from dataclasses import replace

import networkx as nx
import pytest
import torch

from graphs_at_random import adjacency_of, from_networkx
from polypath.errors import InputError
from polypath.graphs import LinkSplit, sample_negatives, split_links

KARATE = from_networkx(nx.karate_club_graph())


def split(seed: int = 0, **options: float) -> LinkSplit:
    return split_links(KARATE, torch.Generator().manual_seed(seed), **options)


def test_every_edge_is_in_one_part() -> None:
    found = split(valid=0.1, test=0.2, valid_negatives=0.2)
    sizes = [part.shape[1] for part in (found.train, found.valid, found.test)]
    assert sizes == [54, 8, 16]
    assert (found.valid_negatives.shape[1], found.test_negatives.shape[1]) == (16, 16)
    every = found.seen(found.train, found.valid, found.test)
    assert torch.equal(every.edge_index, KARATE)
    assert not every.has(torch.cat([found.valid_negatives, found.test_negatives], 1)).any()
    assert found.graph.num_edges == 54 and found.graph.num_nodes == 34


def test_seeds_are_splits() -> None:
    assert torch.equal(split(1).test, split(1).test)
    assert not torch.equal(split(1).test, split(2).test)


@pytest.mark.parametrize(
    ("part", "source", "told"),
    [
        ("train", "test", "1 pairs of test are in train too"),
        ("train", "valid", "1 pairs of valid are in train too"),
        ("valid", "test", "1 pairs of test are in valid too"),
        ("test_negatives", "train", "1 pairs of test_negatives are in train too"),
        ("valid_negatives", "test", "1 pairs of valid_negatives are in test too"),
    ],
)
def test_a_planted_leak_is_caught(part: str, source: str, told: str) -> None:
    found = split()
    leak = getattr(found, source)[:, :1].flip(0)  # in the other direction
    with pytest.raises(InputError, match=told):
        replace(found, **{part: torch.cat([getattr(found, part), leak], 1)})


@pytest.mark.parametrize("count", [1, 30, 483])
def test_negatives_are_pairs_without_an_edge(count: int) -> None:
    adjacency = adjacency_of(nx.karate_club_graph())
    pairs = sample_negatives(adjacency, count, torch.Generator().manual_seed(0))
    assert pairs.shape == (2, count) and (pairs[0] < pairs[1]).all()
    assert not adjacency.has(pairs).any() and len(pairs.unique(dim=1).T) == count


def test_all_pairs_have_the_same_chance() -> None:
    adjacency = adjacency_of(nx.path_graph(5))  # six pairs without an edge
    drawn = [
        sample_negatives(adjacency, 2, torch.Generator().manual_seed(seed)) for seed in range(600)
    ]
    counts = torch.cat(drawn, 1).unique(dim=1, return_counts=True)[1]
    assert len(counts) == 6 and (counts - 200).abs().max() < 4 * (1200 * 5 / 36) ** 0.5


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(InputError, match="484 negatives are wanted; 483 pairs"):
        sample_negatives(adjacency_of(nx.karate_club_graph()), 484, torch.Generator())
    for shares in ({"valid": 0.0}, {"test": 0.95}):
        with pytest.raises(InputError, match="leave a part empty"):
            split(**shares)
