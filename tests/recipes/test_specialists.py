"""The regression for specialists, where the best expert of a point is known."""

import torch
from torch.nn import functional as F

from polypath.language import RoutedLayers, build_stack
from polypath.recipes.specialists import (
    CLUSTERS,
    DIM,
    HIDDEN,
    TESTED,
    Points,
    measured,
    points,
)
from polypath.routing import MoE


def test_points_lie_about_their_centres_and_are_the_same_for_a_seed() -> None:
    data, test = points(3)
    again, _ = points(3)
    assert torch.equal(data.x, again.x) and not torch.equal(data.x, points(4)[0].x)
    assert len(test.x) == TESTED and set(test.cluster.tolist()) == set(range(CLUSTERS))
    for cluster in range(CLUSTERS):
        own = test.x[test.cluster == cluster]
        torch.testing.assert_close(own.std(0).mean(), torch.tensor(0.6), rtol=0.05, atol=0)
        torch.testing.assert_close(own.mean(0).square().mean(), torch.tensor(1.0), rtol=0.1, atol=0)


def perfect() -> tuple[MoE, Points]:
    """A layer whose expert of each cluster is its teacher, and rows that find the cluster."""
    routed = RoutedLayers(num_experts=CLUSTERS, k=1, kind="gelu", gate="softmax-chosen", losses={})
    torch.manual_seed(0)
    layer = build_stack(routed, DIM, HIDDEN, 1)[0]
    cluster = torch.arange(CLUSTERS).repeat_interleave(20)
    x = 5 * F.one_hot(cluster, DIM).float() + 0.1 * torch.randn(len(cluster), DIM)
    with torch.no_grad():
        layer.router.scorer.weight.copy_(torch.eye(CLUSTERS, DIM))
        y = layer(x)
    return layer, Points(x, y, cluster)


def test_perfect_specialists_are_seen_to_be_so() -> None:
    layer, test = perfect()
    facts = measured(layer, test)
    assert facts["error"] == facts["regret"] == 0
    assert facts["coupled"] == facts["purity"] == 1
    assert facts["spread"] < 1e-6 and facts["bound"] > 0.7


def test_points_sent_to_the_wrong_expert_regret_it() -> None:
    layer, test = perfect()
    with torch.no_grad():
        layer.router.scorer.weight.copy_(layer.router.scorer.weight.roll(1, 0))
    facts = measured(layer, test)
    assert facts["coupled"] == 0 and facts["purity"] == 1
    assert abs(facts["regret"] - facts["error"]) < 1e-5 * facts["error"]
