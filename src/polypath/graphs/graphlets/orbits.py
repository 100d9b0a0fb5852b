"""The orbits of graphlets of two to four nodes, and the 28 pairs of them, by name.

An orbit is a node's place in a graphlet, up to symmetry, in the numbering of Pržulj (2007):

    graphlet        orbits
    0 edge          0
    1 path of 3     1 end, 2 middle
    2 triangle      3
    3 path of 4     4 end, 5 inner
    4 claw          6 leaf, 7 centre
    5 cycle of 4    8
    6 paw           9 pendant, 10 triangle, 11 hub
    7 diamond       12 rim, 13 chord
    8 clique of 4   14

Source: GRADCO, Graphlets correct for the topological information missed by random walks,
arXiv 2405.14194.
"""

from __future__ import annotations

from collections.abc import Iterable

from polypath.errors import InputError

OrbitPair = tuple[int, int, int]
"""(hop, o1, o2): how far apart both are inside the graphlet, the row's orbit, the column's."""

ORBIT_PAIRS: tuple[OrbitPair, ...] = (
    (1, 0, 0),
    (1, 1, 2),
    (1, 2, 1),
    (2, 1, 1),
    (1, 3, 3),
    (1, 4, 5),
    (1, 5, 4),
    (2, 4, 5),
    (2, 5, 4),
    (1, 5, 5),
    (3, 4, 4),
    (1, 6, 7),
    (1, 7, 6),
    (2, 6, 6),
    (1, 8, 8),
    (2, 8, 8),
    (1, 9, 11),
    (1, 11, 9),
    (2, 9, 10),
    (2, 10, 9),
    (1, 10, 10),
    (1, 10, 11),
    (1, 11, 10),
    (1, 12, 13),
    (1, 13, 12),
    (2, 12, 12),
    (1, 13, 13),
    (1, 14, 14),
)

WALK_VISIBLE: frozenset[OrbitPair] = frozenset(
    {
        *((1, 0, 0), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 3, 3), (3, 4, 4), (1, 8, 8)),
        *((2, 9, 10), (2, 10, 9), (1, 12, 13), (1, 13, 12), (2, 12, 12), (1, 14, 14)),
    }
)
"""Those that walks of up to three steps see, and only in fixed mixtures:
A² = 1–1 + 3–3, and off the diagonal A³ = 0–0 + 2 (3–3) + 1–2 + 2–1 + 4–4 + 8–8 (hop 1) + 9–10 +
10–9 + 12–13 + 13–12 + 2 (12–12) + 2 (14–14)."""

EDGE_PAIRS: tuple[OrbitPair, ...] = tuple(
    pair for pair in ORBIT_PAIRS[1:] if pair[0] == 1 and pair[1] <= pair[2]
)
"""The twelve of one hop in graphlets of three and four nodes, one of each two transposes."""

GRAPHLET_OF: tuple[int, ...] = (0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 6, 7, 7, 8)
"""The graphlet of each orbit."""


def transposed(pair: OrbitPair) -> OrbitPair:
    """The pair whose matrix is the transpose."""
    hop, row, column = pair
    return hop, column, row


def chosen(only: Iterable[OrbitPair] | None) -> tuple[OrbitPair, ...]:
    """The pairs asked for, all without; raises InputError for one that is none."""
    if only is None:
        return ORBIT_PAIRS
    found = tuple(dict.fromkeys(only))
    for pair in found:
        if pair not in ORBIT_PAIRS:
            near = [own for own in ORBIT_PAIRS if own[1:] == pair[1:]] or ORBIT_PAIRS
            raise InputError(
                f"no orbit adjacency {pair}; (hop, o1, o2) is one of {', '.join(map(str, near))}"
            )
    return found
