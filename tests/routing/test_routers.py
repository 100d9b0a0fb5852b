"""Routers: whole compositions against their equations, peers, limits and bad input."""

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Config,
    DeepseekV3TopkRouter,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeConfig, OlmoeTopKRouter

from draws import Problem, problems
from polypath.errors import InputError
from polypath.routing import (
    ExpertChoiceRouter,
    HashRouter,
    LinearScorer,
    LoadBalance,
    MoE,
    Router,
    RoutingContext,
    SelectionBias,
    SigmoidGate,
    SoftmaxGate,
    SoftRouter,
    TopK,
    TopKRouter,
)
from polypath.routing.scorers import _mix
from references import (
    assert_same,
    cosine_scores,
    leaves_of,
    linear_scores,
    mixture,
    queue,
    rows,
    sigmoid,
    sigmoid_weights,
    softmax,
    softmax_weights,
    top_k,
)


def closed(scores: Tensor, problem: Problem) -> Tensor:
    """Scores (T, E) with -inf outside the candidates."""
    if problem.candidates is None:
        return scores
    return scores.masked_fill(~problem.candidates, -torch.inf)


def slow_top_k(router: TopKRouter, problem: Problem, gate: str) -> tuple[Tensor, ...]:
    """Scores, probabilities, experts and weights of a TopKRouter, as the equations read."""
    scorer = router.scorer
    if isinstance(scorer, LinearScorer):
        scores = linear_scores(problem.x, scorer.weight)
    else:
        temperature = scorer.log_temperature.exp().squeeze()
        scores = cosine_scores(problem.x, scorer.projection, scorer.weight, temperature)
    scores = closed(scores, problem)
    experts = [top_k(row, problem.k) for row in scores.tolist()]
    pairs = list(zip(scores, experts, strict=True))
    if gate == "sigmoid":
        probabilities = [[sigmoid(s) for s in row] for row in scores]
        weights = [sigmoid_weights(row, ids, normalise=True) for row, ids in pairs]
    else:
        over = "chosen" if gate == "softmax-chosen" else "all"
        probabilities = [softmax(list(row)) for row in scores]
        weights = [softmax_weights(row, ids, over) for row, ids in pairs]
    probabilities = rows(probabilities, problem.num_experts)
    ids = torch.tensor(experts, dtype=torch.int64).view(-1, problem.k)
    return scores, probabilities, ids, rows(weights, problem.k)


@pytest.mark.parametrize("gate", ["softmax", "softmax-chosen", "sigmoid"])
@pytest.mark.parametrize("scorer", ["linear", "cosine"])
@given(problem=problems())
def test_top_k_router_follows_the_equations(problem: Problem, scorer: str, gate: str) -> None:
    router = TopKRouter(problem.dim, problem.num_experts, problem.k, scorer, gate).double()
    routing = router(problem.x, problem.context())
    scores, probabilities, experts, weights = slow_top_k(router, problem, gate)
    leaves = leaves_of(router, problem.x)
    torch.testing.assert_close(routing.scores, scores)
    assert torch.equal(routing.experts, experts)
    assert_same(routing.probabilities, probabilities, leaves, 1e-6)
    assert_same(routing.weights, weights, leaves, 1e-6)
    assert routing.mask is problem.mask


@given(problems())
def test_forced_experts_are_weighted_as_chosen_ones_are(problem: Problem) -> None:
    router = TopKRouter(problem.dim, problem.num_experts, problem.k).double()
    experts = torch.rand(len(problem.x), problem.num_experts).argsort(-1)[:, : problem.k]
    experts = experts.masked_fill(torch.rand(experts.shape) < 0.2, -1)
    routing = router(problem.x, problem.context(experts=experts))
    scores = closed(linear_scores(problem.x, router.scorer.weight), problem)
    weights = [
        softmax_weights(row, ids, "chosen")
        for row, ids in zip(scores, experts.tolist(), strict=True)
    ]
    assert routing.experts is experts
    assert_same(routing.weights, rows(weights, problem.k), leaves_of(router, problem.x))


@given(problems())
def test_soft_router_is_the_dense_mixture(problem: Problem) -> None:
    router = SoftRouter(problem.dim, problem.num_experts).double()
    routing = router(problem.x, problem.context())
    bank = [nn.Linear(problem.dim, problem.dim).double() for _ in range(problem.num_experts)]
    y = mixture(problem.x, routing.experts, routing.weights, bank)
    scores = closed(linear_scores(problem.x, router.scorer.weight), problem)
    shares = rows([softmax(list(row)) for row in scores], problem.num_experts)
    dense = sum(shares[:, e, None] * expert(problem.x) for e, expert in enumerate(bank))
    assert_same(y, dense, leaves_of(nn.ModuleList([router, *bank]), problem.x))


@given(problems())
def test_expert_choice_weighs_by_the_softmax_over_experts(problem: Problem) -> None:
    router = ExpertChoiceRouter(problem.dim, problem.num_experts, factor=1.5).double()
    routing = router(problem.x, problem.context())
    scores = closed(linear_scores(problem.x, router.scorer.weight), problem)
    weights = [
        softmax_weights(row, ids, "all")
        for row, ids in zip(scores, routing.experts.tolist(), strict=True)
    ]
    slow = rows(weights, routing.experts.shape[1])
    assert_same(routing.weights, slow, leaves_of(router, problem.x))
    padding = ~torch.tensor(problem.counted, dtype=torch.bool)
    assert not routing.count()[padding].any(), "padding is never chosen"


# Hash routing


def hashed(tokens: Tensor, num_experts: int, k: int, seed: int = 0, dim: int = 3) -> Tensor:
    x = torch.randn(len(tokens), dim)
    return HashRouter(num_experts, k, seed)(x, RoutingContext(tokens=tokens)).experts


def test_hash_depends_on_ids_and_seed_alone() -> None:
    tokens = torch.randint(0, 50_000, (300,))
    order = torch.randperm(300)
    assert torch.equal(hashed(tokens, 16, 2)[order], hashed(tokens[order], 16, 2, dim=7))
    assert not torch.equal(hashed(tokens, 16, 2), hashed(tokens, 16, 2, seed=1))


@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (8, 1), (64, 8), (5, 5)])
def test_hash_gives_distinct_experts_and_binomial_loads(num_experts: int, k: int) -> None:
    tokens = torch.arange(20_000)
    experts = hashed(tokens, num_experts, k)
    assert (experts.sort(-1).values.diff(dim=-1) > 0).all()
    share = k / num_experts
    deviation = math.sqrt(len(tokens) * share * (1 - share))
    load = experts.flatten().bincount(minlength=num_experts)
    assert (load - len(tokens) * share).abs().max() <= 5 * deviation
    first = experts[:, 0].bincount(minlength=num_experts)
    spread = math.sqrt(len(tokens) / num_experts * (1 - 1 / num_experts))
    assert (first - len(tokens) / num_experts).abs().max() <= 5 * spread


def test_hash_of_two_seeds_is_independent() -> None:
    tokens = torch.arange(20_000)
    agree = (hashed(tokens, 8, 1, seed=0) == hashed(tokens, 8, 1, seed=1)).sum()
    assert abs(int(agree) - 2500) <= 5 * math.sqrt(20_000 * 7 / 64)


def test_hash_mixes_bits_one_to_one() -> None:
    bits = torch.randint(-(2**63), 2**63 - 1, (10_000,)).unique()
    mixed = _mix(bits)
    assert len(mixed.unique()) == len(bits)
    ones = (mixed[:, None] >> torch.arange(64) & 1).float().mean(0)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(bits))


# Peers


def peer(router: nn.Module) -> nn.Module:
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    return router.double()


def assert_routes_alike(ours: Router, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    """The same experts with the same weights; the peers compute the latter in float32."""
    x = torch.randn(50, 6, dtype=torch.float64)
    ours.scorer.weight = theirs.weight
    routing = ours(x, RoutingContext())
    _, weights, experts = theirs(x)
    order, reverse = experts.argsort(-1), routing.experts.argsort(-1)
    assert torch.equal(routing.experts.gather(1, reverse), experts.gather(1, order))
    torch.testing.assert_close(
        routing.weights.gather(1, reverse),
        weights.gather(1, order),
        rtol=tolerance,
        atol=tolerance,
        check_dtype=False,
    )


@pytest.mark.parametrize("renormalised", [False, True])
def test_olmoe_routes_alike(renormalised: bool) -> None:
    config = OlmoeConfig(
        hidden_size=6, num_experts=8, num_experts_per_tok=3, norm_topk_prob=renormalised
    )
    gate = "softmax-chosen" if renormalised else "softmax"
    assert_routes_alike(TopKRouter(6, 8, 3, gate=gate).double(), peer(OlmoeTopKRouter(config)))


def test_mixtral_routes_alike() -> None:
    config = MixtralConfig(hidden_size=6, num_local_experts=8, num_experts_per_tok=2)
    assert_routes_alike(TopKRouter(6, 8, 2).double(), peer(MixtralTopKRouter(config)))


def test_gpt_oss_routes_alike() -> None:
    config = GptOssConfig(hidden_size=6, num_local_experts=8, num_experts_per_tok=2)
    theirs = peer(GptOssTopKRouter(config))
    ours = TopKRouter(6, 8, 2, LinearScorer(6, 8, bias=True)).double()
    ours.scorer.bias = theirs.bias
    assert_routes_alike(ours, theirs, 1e-12)


@pytest.mark.parametrize("normalise", [True, False])
def test_deepseek_routes_alike(normalise: bool) -> None:
    config = DeepseekV3Config(
        hidden_size=6,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        norm_topk_prob=normalise,
        routed_scaling_factor=2.5,
    )
    theirs = peer(DeepseekV3TopkRouter(config))
    nn.init.normal_(theirs.e_score_correction_bias, std=0.3)
    bias = SelectionBias(8)
    bias.value.copy_(theirs.e_score_correction_bias)
    selection = TopK(3, bias, groups=4, best_groups=2)
    ours = Router(LinearScorer(6, 8), selection, SigmoidGate(normalise, scale=2.5)).double()
    assert_routes_alike(ours, theirs)


# Capacity, candidates and what else a router does around its pieces


@given(problems(masks=False))
def test_capacity_drops_the_late_and_keeps_the_weights_of_the_rest(problem: Problem) -> None:
    free = TopKRouter(problem.dim, problem.num_experts, problem.k).double()
    tight = TopKRouter(problem.dim, problem.num_experts, problem.k, capacity=0.7).double()
    tight.load_state_dict(free.state_dict())
    expected, routing = free(problem.x), tight(problem.x)
    room = math.ceil(0.7 * len(problem.x) * problem.k / problem.num_experts)
    assert routing.experts.tolist() == queue(expected.experts.tolist(), room)
    kept = routing.experts >= 0
    assert torch.equal(routing.weights, expected.weights * kept)
    again = tight(problem.x, RoutingContext(experts=routing.experts))
    assert torch.equal(again.experts, routing.experts), "a replay drops nothing more"


def test_losses_see_choices_before_capacity_drops_them() -> None:
    router = TopKRouter(3, 4, 1, losses=[LoadBalance(1.0)])
    tight = TopKRouter(3, 4, 1, losses=[LoadBalance(1.0)], capacity=0.3)
    tight.load_state_dict(router.state_dict())
    x = torch.randn(1, 3).expand(20, 3)
    assert tight(x).count().sum() < 20
    assert torch.equal(tight(x).losses["load_balance"], router(x).losses["load_balance"])


@pytest.mark.parametrize("gate", ["softmax", "softmax-chosen", "sigmoid"])
def test_a_thing_without_candidates_gets_nothing_and_gives_no_gradient(gate: str) -> None:
    router = TopKRouter(3, 4, 2, gate=gate, losses=[LoadBalance(1.0)])
    x = torch.randn(3, 3, requires_grad=True)
    candidates = torch.tensor([[True] * 4, [False] * 4, [False, False, False, True]])
    routing = router(x, RoutingContext(candidates=candidates))
    assert routing.count().tolist() == [2, 0, 1]
    assert torch.equal(routing.weights[1], torch.zeros(2))
    assert torch.equal(routing.probabilities[1], torch.zeros(4))
    (routing.weights.sum() + sum(routing.losses.values())).backward()
    assert torch.equal(x.grad[1], torch.zeros(3))
    assert router.scorer.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "router", [TopKRouter(3, 4, 2), ExpertChoiceRouter(3, 4), SoftRouter(3, 4)]
)
def test_nan_is_seen_where_it_came_from_and_nowhere_else(router: Router) -> None:
    x = torch.randn(5, 3)
    x[2] = torch.nan
    routing = router(x)
    assert routing.count()[2] > 0
    assert routing.weights[2][routing.experts[2] >= 0].isnan().all()
    assert not routing.weights[[0, 1, 3, 4]].isnan().any()


@pytest.mark.parametrize("scorer", ["linear", "cosine"])
def test_autocast_changes_nothing(scorer: str) -> None:
    router = TopKRouter(8, 4, 2, scorer, losses=[LoadBalance()])
    x = torch.randn(20, 8)
    plain = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = router(x)
        assert torch.is_autocast_enabled("cpu")
    assert cast.tensors().keys() == plain.tensors().keys()
    assert all(torch.equal(cast.tensors()[name], plain.tensors()[name]) for name in plain.tensors())


def test_losses_are_copied_so_that_layers_count_for_themselves() -> None:
    balance = LoadBalance()
    first, second = (TopKRouter(3, 4, 2, losses=[balance]) for _ in range(2))
    assert first.losses["load_balance"] is not second.losses["load_balance"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopKRouter(3, 4, 5), "k=5 of 4 experts; 1 ≤ k ≤ E"),
        (lambda: TopKRouter(3, 4, 0), "k=0 of 4 experts; 1 ≤ k ≤ E"),
        (lambda: HashRouter(4, 5), "k=5 of 4 experts; 1 ≤ k ≤ E"),
        (lambda: TopKRouter(3, 4, 2, "liner"), "scorer 'liner'; did you mean 'linear'"),
        (lambda: TopKRouter(3, 4, 2, gate="softmx"), "gate 'softmx'; did you mean 'softmax'"),
        (lambda: TopKRouter(3, 4, 2, capacity=0.0), "capacity=0.0; it must be positive"),
        (lambda: TopKRouter(3, 4, 2, losses=[LoadBalance(), LoadBalance()]), "'load_balance'"),
    ],
)
def test_impossible_routers_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"mask": torch.ones(4, dtype=torch.bool)}, r"mask is \(4,\) of torch.bool; \(5,\)"),
        ({"mask": torch.ones(5)}, r"mask is \(5,\) of torch.float32; \(5,\) of torch.bool"),
        ({"candidates": torch.ones(3, dtype=torch.bool)}, r"candidates is .*; \(4,\) or \(5, 4\)"),
        ({"candidates": torch.ones(4, 5, dtype=torch.bool)}, r"\(4,\) or \(5, 4\) of torch.bool"),
        ({"experts": torch.zeros(4, 2, dtype=torch.int64)}, r"experts is \(4, 2\)"),
        ({"experts": torch.zeros(5, dtype=torch.int64)}, r"experts is \(5,\)"),
        ({"tokens": torch.zeros(6, dtype=torch.int64)}, r"tokens is \(6,\)"),
        ({"shape": (2, 3)}, r"shape \(2, 3\) is the layout of 6 things; the router was given 5"),
    ],
)
def test_contexts_that_do_not_fit_are_refused(context: dict, message: str) -> None:
    for router in (TopKRouter(3, 4, 2), SoftRouter(3, 4), ExpertChoiceRouter(3, 4)):
        with pytest.raises(InputError, match=message) as caught:
            router(torch.randn(5, 3), RoutingContext(**context))
        assert "\n" not in str(caught.value)


def test_a_router_says_what_context_it_lacks() -> None:
    with pytest.raises(InputError, match="HashRouter needs `tokens`"):
        HashRouter(4)(torch.randn(5, 3), RoutingContext())
    with pytest.raises(InputError, match=r"tokens is \(4,\)"):
        HashRouter(4)(torch.randn(5, 3), RoutingContext(tokens=torch.arange(4)))


def test_pieces_of_ones_own_compose() -> None:
    class Nearest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres = nn.Parameter(torch.tensor([[0.0], [1.0], [2.0]]))

        def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
            return -torch.cdist(x, self.centres)

    router = Router(Nearest(), TopK(1), SoftmaxGate("all"))
    y = MoE(router, experts=lambda x, routing: routing.experts.float())(
        torch.tensor([[0.1], [1.8]])
    )
    assert y.tolist() == [[0.0], [2.0]]
