"""Orbits of graphlets of up to four nodes: of pairs, of edges and of nodes; embeddings of them."""

from polypath.graphs.graphlets.degrees import (
    edge_graphlet_degree_vectors,
    graphlet_degree_vectors,
)
from polypath.graphs.graphlets.embedding import embed, positive_pmi, walk_cooccurrence
from polypath.graphs.graphlets.matrices import (
    graphlet_adjacencies,
    orbit_adjacencies,
    orbit_adjacency_blocks,
    pair_orbits,
)
from polypath.graphs.graphlets.orbits import (
    EDGE_PAIRS,
    GRAPHLET_OF,
    ORBIT_PAIRS,
    WALK_VISIBLE,
    OrbitPair,
)
from polypath.graphs.graphlets.store import load_orbit_adjacencies, save_orbit_adjacencies

__all__ = [
    "EDGE_PAIRS",
    "GRAPHLET_OF",
    "ORBIT_PAIRS",
    "WALK_VISIBLE",
    "OrbitPair",
    "edge_graphlet_degree_vectors",
    "embed",
    "graphlet_adjacencies",
    "graphlet_degree_vectors",
    "load_orbit_adjacencies",
    "orbit_adjacencies",
    "orbit_adjacency_blocks",
    "pair_orbits",
    "positive_pmi",
    "save_orbit_adjacencies",
    "walk_cooccurrence",
]
