"""Graphs: neighbours, heuristics, message passing over semirings, splits, rankings, data."""

from polypath.graphs.adjacency import Adjacency, undirected
from polypath.graphs.concentration import (
    approximate_topological_concentration,
    ego_density,
    intersections,
    strata,
    topological_concentration,
)
from polypath.graphs.datasets import heterophilous, import_graph, planetoid
from polypath.graphs.decoders import ProductMLP, ProductMLPConfig
from polypath.graphs.encoders import EncoderConfig, GraphEncoder
from polypath.graphs.explain import explain
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
from polypath.graphs.knowledge_splits import KnowledgeSplit, hold_out, split_entities, split_facts
from polypath.graphs.link_moe import GateConfig, LinkMoE, LinkMoEConfig
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.ncn import NCN, NCNC, Calibration, NCNCConfig, NCNConfig
from polypath.graphs.negatives import hard_negatives
from polypath.graphs.node_ranking import NodeRanking, rank_nodes
from polypath.graphs.ogb import ogb_split
from polypath.graphs.overlap import Overlap, Ragged, common_neighbours, common_sums, overlap
from polypath.graphs.pair_features import pair_features
from polypath.graphs.passing import Incoming, pass_messages, pass_statistics
from polypath.graphs.paths import paths_between
from polypath.graphs.predictors import LinkPredictor, link_scores
from polypath.graphs.products import (
    EdgeWeights,
    mean_of_neighbours,
    mean_with_self,
    propagate,
    symmetric,
)
from polypath.graphs.python_knowledge import python_knowledge
from polypath.graphs.ranking import (
    expected_hits,
    filtered_ranks,
    hits_at,
    mean_reciprocal_rank,
    ranks_among,
)
from polypath.graphs.reweighting import ReweightedEncoder, Reweighting
from polypath.graphs.sampling import NeighbourSampler, link_loader, neighbour_loader
from polypath.graphs.saved import SavedPredictor
from polypath.graphs.saved_knowledge import SavedKnowledge, read_saved
from polypath.graphs.scorers import HeuristicConfig, HeuristicScorer
from polypath.graphs.splits import LinkSplit, sample_negatives, split_links
from polypath.graphs.triple_files import (
    read_facts,
    read_grail,
    read_openke,
    read_triples,
    write_triples,
)
from polypath.graphs.triples import KnowledgeGraph, Known

__all__ = [
    "NCN",
    "NCNC",
    "ORBIT_PAIRS",
    "WALK_VISIBLE",
    "Adjacency",
    "Calibration",
    "EdgeWeights",
    "EncoderConfig",
    "GateConfig",
    "GraphEncoder",
    "HeuristicConfig",
    "HeuristicScorer",
    "Incoming",
    "KnowledgeGraph",
    "KnowledgeSplit",
    "Known",
    "LinkMoE",
    "LinkMoEConfig",
    "LinkPredictor",
    "LinkSplit",
    "NBFNet",
    "NBFNetConfig",
    "NCNCConfig",
    "NCNConfig",
    "NamedGraph",
    "NeighbourSampler",
    "NodeRanking",
    "Overlap",
    "ProductMLP",
    "ProductMLPConfig",
    "Ragged",
    "ReweightedEncoder",
    "Reweighting",
    "SavedKnowledge",
    "SavedPredictor",
    "adamic_adar",
    "approximate_topological_concentration",
    "common_neighbours",
    "common_sums",
    "edge_graphlet_degree_vectors",
    "ego_density",
    "expected_hits",
    "explain",
    "filtered_ranks",
    "graphlet_adjacencies",
    "graphlet_degree_vectors",
    "hard_negatives",
    "heterophilous",
    "hits_at",
    "hold_out",
    "import_graph",
    "intersections",
    "jaccard",
    "katz",
    "katz_index",
    "link_loader",
    "link_scores",
    "load_orbit_adjacencies",
    "mean_of_neighbours",
    "mean_reciprocal_rank",
    "mean_with_self",
    "neighbour_loader",
    "ogb_split",
    "orbit_adjacencies",
    "orbit_adjacency_blocks",
    "overlap",
    "pair_features",
    "pair_orbits",
    "pass_messages",
    "pass_statistics",
    "paths_between",
    "personalised_pagerank",
    "planetoid",
    "preferential_attachment",
    "propagate",
    "python_knowledge",
    "rank_nodes",
    "ranks_among",
    "read_edges",
    "read_facts",
    "read_grail",
    "read_openke",
    "read_pairs",
    "read_saved",
    "read_triples",
    "resource_allocation",
    "sample_negatives",
    "save_orbit_adjacencies",
    "shared_neighbours",
    "shortest_path",
    "split_entities",
    "split_facts",
    "split_links",
    "strata",
    "symmetric",
    "topological_concentration",
    "undirected",
    "write_triples",
]
