"""Graphs: neighbours, heuristics, message passing over semirings, splits, rankings, data."""

from polypath.graphs.adjacency import Adjacency, undirected
from polypath.graphs.datasets import heterophilous, import_graph, planetoid
from polypath.graphs.files import NamedGraph, read_edges, read_pairs
from polypath.graphs.graphlets import (
    ORBIT_PAIRS,
    WALK_VISIBLE,
    edge_graphlet_degree_vectors,
    graphlet_adjacencies,
    graphlet_degree_vectors,
    load_orbit_adjacencies,
    orbit_adjacencies,
    orbit_adjacency_blocks,
    pair_orbits,
    save_orbit_adjacencies,
)
from polypath.graphs.heuristics import (
    adamic_adar,
    jaccard,
    katz,
    katz_index,
    personalised_pagerank,
    preferential_attachment,
    resource_allocation,
    shared_neighbours,
    shortest_path,
)
from polypath.graphs.negatives import hard_negatives
from polypath.graphs.overlap import Overlap, Ragged, common_neighbours, common_sums, overlap
from polypath.graphs.passing import Incoming, pass_messages, pass_statistics
from polypath.graphs.ranking import (
    expected_hits,
    filtered_ranks,
    hits_at,
    mean_reciprocal_rank,
    ranks_among,
)
from polypath.graphs.splits import LinkSplit, sample_negatives, split_links

__all__ = [
    "ORBIT_PAIRS",
    "WALK_VISIBLE",
    "Adjacency",
    "Incoming",
    "LinkSplit",
    "NamedGraph",
    "Overlap",
    "Ragged",
    "adamic_adar",
    "common_neighbours",
    "common_sums",
    "edge_graphlet_degree_vectors",
    "expected_hits",
    "filtered_ranks",
    "graphlet_adjacencies",
    "graphlet_degree_vectors",
    "hard_negatives",
    "heterophilous",
    "hits_at",
    "import_graph",
    "jaccard",
    "katz",
    "katz_index",
    "load_orbit_adjacencies",
    "mean_reciprocal_rank",
    "orbit_adjacencies",
    "orbit_adjacency_blocks",
    "overlap",
    "pair_orbits",
    "pass_messages",
    "pass_statistics",
    "personalised_pagerank",
    "planetoid",
    "preferential_attachment",
    "ranks_among",
    "read_edges",
    "read_pairs",
    "resource_allocation",
    "sample_negatives",
    "save_orbit_adjacencies",
    "shared_neighbours",
    "shortest_path",
    "split_links",
    "undirected",
]
