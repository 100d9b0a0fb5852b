from collections import Counter

import networkx as nx
import pytest

from graphlet_references import GRAPHLETS
from polypath.errors import InputError
from polypath.graphs.graphlets import EDGE_PAIRS, GRAPHLET_OF, ORBIT_PAIRS, WALK_VISIBLE
from polypath.graphs.graphlets.orbits import chosen, transposed


def test_pairs_are_those_that_occur_in_the_graphlets() -> None:
    found: Counter = Counter()
    for graphlet, (edges, orbits) in enumerate(GRAPHLETS):
        hops = dict(nx.all_pairs_shortest_path_length(nx.Graph(edges)))
        copies = Counter(
            (hops[i][j], orbits[i], orbits[j]) for i in hops for j in hops[i] if i != j
        )
        assert {GRAPHLET_OF[orbit] for orbit in orbits} == {graphlet}
        assert sum(copies.values()) == len(orbits) * (len(orbits) - 1)
        found += copies
    assert len(ORBIT_PAIRS) == 28 and set(found) == set(ORBIT_PAIRS)
    # The table's pairs in a copy, in its order.
    wanted = [2, 2, 2, 2, 6, 2, 2, 2, 2, 2, 2, 3, 3, 6, 8, 4, 1, 1, 2, 2, 2, 2, 2, 4, 4, 2, 2, 12]
    assert [found[pair] for pair in ORBIT_PAIRS] == wanted


def test_eight_pairs_are_transposes_and_thirteen_are_seen_by_walks() -> None:
    apart = [pair for pair in ORBIT_PAIRS if transposed(pair) != pair]
    assert len(apart) == 16 and set(map(transposed, apart)) == set(apart)
    assert len(WALK_VISIBLE) == 13 and set(map(transposed, WALK_VISIBLE)) == WALK_VISIBLE
    assert len(EDGE_PAIRS) == 12 and all(hop == 1 for hop, _, _ in EDGE_PAIRS)


def test_pairs_are_chosen_once_and_told_where_there_are_none() -> None:
    assert chosen(None) == ORBIT_PAIRS
    assert chosen([(2, 1, 1), (1, 0, 0), (2, 1, 1)]) == ((2, 1, 1), (1, 0, 0))
    with pytest.raises(InputError, match=r"no orbit adjacency \(3, 1, 1\).*one of \(2, 1, 1\)$"):
        chosen([(3, 1, 1)])
    with pytest.raises(InputError, match=r"no orbit adjacency \(1, 4, 6\).*one of \(1, 0, 0\), "):
        chosen([(1, 4, 6)])
