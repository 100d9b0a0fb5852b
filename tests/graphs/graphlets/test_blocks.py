from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from graphs_at_random import adjacency_of
from polypath.graphs.graphlets.blocks import Ground
from polypath.graphs.graphlets.orbits import ORBIT_PAIRS

KARATE = adjacency_of(nx.karate_club_graph())


def test_what_making_takes_is_bounded() -> None:
    """More entries than a bound says would break the promise of memory_mb."""
    graph = adjacency_of(nx.gnp_random_graph(80, 0.05, seed=0))
    ground = Ground.of(graph, ORBIT_PAIRS, 1)
    (whole,) = ground.matrices([np.arange(80)], 1)
    for pair, share in (((2, 1, 1), 240), ((3, 4, 4), 48)):
        assert (share * np.diff(whole[pair].indptr) < ground.sizes).all()
    near = Ground.of(graph, ((2, 1, 1),), 1).sizes
    assert (near < ground.sizes).any() and (near <= ground.sizes).all()
    assert Ground.of(graph, ((1, 3, 3),), 1).sizes.max() == 16


@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_keep_to_their_size_or_have_one_row(workers: int) -> None:
    ground = Ground.of(KARATE, ORBIT_PAIRS, workers)
    rows = np.arange(3, 34)
    memory = 3 * ground.sizes.max() / 1e6
    blocks = ground.split(rows, memory, workers)
    assert np.concatenate(blocks).tolist() == rows.tolist()
    taken = [ground.sizes[block].sum() for block in blocks]
    assert max(taken) <= 1e6 * memory / workers
    for block, following in pairwise(blocks):  # none is smaller than it has to be
        assert ground.sizes[[*block, following[0]]].sum() > 1e6 * memory / workers
    assert [len(block) for block in ground.split(rows, 0, workers)] == [1] * 31
    assert ground.split(rows[:0], 1, workers) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_are_rows_of_the_whole(workers: int) -> None:
    ground = Ground.of(KARATE, ORBIT_PAIRS, workers)
    (whole,) = ground.matrices([np.arange(34)], workers)
    blocks = [np.array([5, 3, 3]), np.array([], np.int64), np.arange(20, 34), np.array([0])]
    made = list(ground.matrices(blocks, workers))
    assert len(made) == 4
    for rows, found in zip(blocks, made, strict=True):
        for pair in ORBIT_PAIRS:
            np.testing.assert_array_equal(found[pair].toarray(), whole[pair].toarray()[rows])
