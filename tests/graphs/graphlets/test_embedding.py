import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs.graphlets import embed, orbit_adjacencies, positive_pmi, walk_cooccurrence


@given(graphs(), st.integers(1, 4))
def test_walks_meet_as_powers_of_their_steps(graph: nx.Graph, length: int) -> None:
    a = nx.to_numpy_array(graph)
    d = a.sum(1)
    steps = np.divide(a, d[:, None], out=np.zeros_like(a), where=d[:, None] > 0)
    wanted = sum(np.diag(d) @ np.linalg.matrix_power(steps, t) for t in range(1, length + 1))
    found = walk_cooccurrence(adjacency_of(graph), length).toarray()
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@given(graphs(least=2))
def test_information_is_entry_by_entry(graph: nx.Graph) -> None:
    matrix = orbit_adjacencies(adjacency_of(graph), only=[(1, 1, 2)])[1, 1, 2]
    m, found = matrix.toarray(), positive_pmi(matrix).toarray()
    for i, j in np.ndindex(m.shape):
        wanted = 0.0
        if m[i, j]:
            ratio = int(m[i, j]) * int(m.sum()) / (int(m[i].sum()) * int(m[:, j].sum()))
            wanted = max(0.0, math.log(ratio))
        assert found[i, j] == pytest.approx(wanted, abs=1e-12)


def test_large_counts_keep_their_information() -> None:
    counts = np.array([[0, 2, 7], [2, 0, 1], [7, 1, 0]])
    small = positive_pmi(sparse.csr_array(counts))
    large = positive_pmi(sparse.csr_array(counts * 2**55))
    np.testing.assert_allclose(large.toarray(), small.toarray(), atol=1e-12)


@pytest.mark.parametrize("pair", [(1, 0, 0), (2, 9, 10), (3, 4, 4)])
def test_an_embedding_is_half_of_a_singular_value_decomposition(
    pair: tuple[int, int, int],
) -> None:
    matrix = orbit_adjacencies(adjacency_of(nx.karate_club_graph()), only=[pair])[pair]
    both = positive_pmi(sparse.csr_array(matrix + matrix.T)).toarray()
    u, s, _ = np.linalg.svd(both)
    found = embed(matrix, 6).numpy()
    np.testing.assert_allclose((found**2).sum(0), s[:6], rtol=1e-8)
    # U is that of equal singular values only up to a rotation: their projections are the same.
    if s[5] > s[6] + 1e-6:
        own = found / np.sqrt(s[:6])
        np.testing.assert_allclose(own @ own.T, u[:, :6] @ u[:, :6].T, atol=1e-6)
    assert (found[np.abs(found).argmax(0), np.arange(6)] > 0).all()
    torch.testing.assert_close(embed(matrix, 6, seed=1), torch.from_numpy(found))


def test_what_has_a_low_rank_is_embedded() -> None:
    cliques = nx.disjoint_union_all([nx.complete_bipartite_graph(3, 3)] * 3)
    matrix = orbit_adjacencies(adjacency_of(cliques), only=[(1, 0, 0)])[1, 0, 0]
    found = embed(matrix, 10)
    s = np.linalg.svd(positive_pmi(matrix).toarray(), compute_uv=False)
    np.testing.assert_allclose((found**2).sum(0), s[:10], atol=1e-8)
    assert not embed(matrix * 0, 5).any()


def test_wrong_input_is_told() -> None:
    matrix = sparse.csr_array(np.array([[0, 1], [1, 0]]))
    for dim in (0, 2):
        with pytest.raises(InputError, match=f"dim={dim} of 2 nodes; 1 … 1 is right"):
            embed(matrix, dim)
    with pytest.raises(InputError, match="an entry is -1"):
        positive_pmi(-matrix)
    with pytest.raises(InputError, match="length=0"):
        walk_cooccurrence(adjacency_of(nx.path_graph(3)), 0)
