"""Random graphs for hypothesis, and small ones by name."""

import networkx as nx
import torch
from hypothesis import strategies as st
from torch import Tensor

from polypath.graphs import Adjacency, undirected


def from_networkx(graph: nx.Graph) -> Tensor:
    """The edge_index (2, M) of a graph, its nodes numbered as networkx lists them."""
    graph = nx.convert_node_labels_to_integers(graph)
    pairs = torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2).T
    return undirected(pairs, graph.number_of_nodes())


@st.composite
def graphs(draw: st.DrawFn, least: int = 1, most: int = 12) -> nx.Graph:
    """Simple undirected graphs of all densities, isolated nodes among them."""
    nodes = draw(st.integers(least, most))
    seed, density = draw(st.integers(0, 2**20)), draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
    return nx.gnp_random_graph(nodes, density, seed=seed)


def adjacency_of(graph: nx.Graph) -> Adjacency:
    return Adjacency.of(from_networkx(graph), graph.number_of_nodes())


def all_pairs(nodes: int) -> Tensor:
    """(2, N (N - 1)): every pair of different nodes, in both orders."""
    every = torch.cartesian_prod(torch.arange(nodes), torch.arange(nodes)).T
    return every[:, every[0] != every[1]]
