import networkx as nx
import pytest
import torch

from graphs_at_random import adjacency_of, all_pairs
from polypath.errors import InputError
from polypath.graphs import jaccard, katz, shared_neighbours, shortest_path
from polypath.graphs.predictors import link_scores
from polypath.graphs.scorers import COSINE, SCORES, HeuristicConfig, HeuristicScorer

KARATE = adjacency_of(nx.karate_club_graph())
PAIRS = all_pairs(34)
PAIRS = PAIRS[:, ~KARATE.has(PAIRS)]
X = torch.randn(34, 5, generator=torch.Generator().manual_seed(0))


def scorer(name: str) -> HeuristicScorer:
    return HeuristicScorer(HeuristicConfig(name))


def test_they_rank_as_heuristics_do() -> None:
    for name, raw in (
        ("cn", shared_neighbours(KARATE, PAIRS)),
        ("jaccard", jaccard(KARATE, PAIRS)),
        ("katz", katz(KARATE, PAIRS)),
        ("sp", -shortest_path(KARATE, PAIRS)),
        (COSINE, torch.nn.functional.cosine_similarity(X[PAIRS[0]], X[PAIRS[1]])),
    ):
        own = scorer(name)
        own.fit(KARATE, X, PAIRS[:, ::3], PAIRS[:, 1::3])
        found = link_scores(own, KARATE, X, PAIRS)
        for order in (raw.argsort(stable=True), raw.argsort(stable=True, descending=True)):
            steps = found[order].diff()
            assert (steps >= -1e-6).all() or (steps <= 1e-6).all(), name
        assert own.scale.item() > 0
        first, last = raw.argmin(), raw.argmax()
        assert found[first] < found[last]


@pytest.mark.parametrize("name", SCORES)
def test_both_orders_have_the_same_score(name: str) -> None:
    own = scorer(name)
    found = own.score(KARATE, X, PAIRS)
    assert torch.equal(found, own.score(KARATE, X, PAIRS.flip(0)))
    assert found.dtype == torch.float32 and found.isfinite().all() and found.requires_grad


def test_a_scale_that_is_fitted_makes_logits() -> None:
    graph = nx.planted_partition_graph(2, 30, 0.5, 0.03, seed=0)
    adjacency = adjacency_of(graph)
    right = adjacency.edges[:, ::4]
    seen = adjacency.without(right)
    every = all_pairs(60)
    wrong = every[:, (every[0] < every[1]) & ~adjacency.has(every)]
    own = scorer("cn")
    own.fit(seen, None, right, wrong)
    # Of many shared neighbours, links are likelier than not; of none, they are not.
    cn = shared_neighbours(seen, every)
    logits = link_scores(own, seen, None, every)
    assert logits[cn == 0].max() < 0 < logits[cn == cn.max()].min()


def test_a_wrong_way_around_keeps_its_ranking() -> None:
    own = scorer("cn")
    cn = shared_neighbours(KARATE, PAIRS)
    own.fit(KARATE, None, PAIRS[:, cn == 0], PAIRS[:, cn > 1])
    assert own.scale.item() == 1 and own.offset.item() == 0


def test_wrong_input_is_told() -> None:
    with pytest.raises(InputError, match="did you mean 'jaccard'"):
        HeuristicConfig("jacard")
    for x in (None, torch.arange(34)):
        with pytest.raises(InputError, match="has no features"):
            scorer(COSINE).score(KARATE, x, PAIRS)
    with pytest.raises(InputError, match="a node with itself"):
        scorer("cn").score(KARATE, None, torch.tensor([[1], [1]]))
