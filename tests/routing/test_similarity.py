"""The numbers named here are those of the specification of Graph of Tokens."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.routing import (
    LinearScorer,
    RoutingContext,
    SimilarityRouter,
    SimilarityScorer,
    TopKRouter,
)

R = torch.tensor([[0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [0.1, 0.1, 0.8]], dtype=torch.float64)
U = torch.tensor([[1, 0], [1, 0.2], [-1, 0.5]], dtype=torch.float64)


class Fixed(torch.nn.Module):
    """Own scores that are given, whatever the things are."""

    def __init__(self, distributions: Tensor) -> None:
        super().__init__()
        self.scores = distributions.log()

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        return self.scores


def example(temperature: float, **options: Any) -> Tensor:
    """The decisions of the worked example, whose logits are not divided by √D."""
    scorer = SimilarityScorer(2, Fixed(R), temperature / math.sqrt(2), **options).double()
    return scorer(U, RoutingContext())[0].exp()


def test_the_worked_example() -> None:
    found = example(1.0, causal=False)
    torch.testing.assert_close(
        found[0], torch.tensor([0.7088, 0.1702, 0.1209]).double(), rtol=0, atol=6e-5
    )
    expected = [[0.7499, 0.1750, 0.0751], [0.7618, 0.1650, 0.0732], [0.1002, 0.1000, 0.7998]]
    found = example(0.25, causal=False)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=6e-5)
    expected = [[0.6, 0.3, 0.1], [0.762, 0.165, 0.073], [0.1002, 0.1, 0.7998]]
    found = example(0.25)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=6e-5)


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def test_entropies_of_the_worked_example_and_its_bounds() -> None:
    def close(found: Tensor, expected: list[float]) -> None:
        torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=6e-5)

    close(entropy(R), [0.8979, 0.3944, 0.6390])
    close(entropy(example(0.25, causal=False)), [0.7153, 0.6959, 0.6395])
    close(entropy(example(0.25, causal=False, voters="surer")), [0.7153, 0.3944, 0.6393])
    weights = (U @ U.T / 0.25).softmax(-1)
    for i, p in enumerate(example(0.25, causal=False)):
        voters = (weights[i] * entropy(R)).sum()
        assert voters <= entropy(p) <= entropy(weights[i]) + voters + 1e-12


def slow(
    scorer: SimilarityScorer, x: Tensor, shape: tuple[int, int], mask: Tensor | None
) -> Tensor:
    """p_i = Σ_j S_ij r_j, thing by thing."""
    own = scorer.own(x, RoutingContext()).softmax(-1)
    rows = []
    for i in range(len(x)):
        sequence, place = divmod(i, shape[1])
        voters = []
        for j in range(sequence * shape[1], (sequence + 1) * shape[1]):
            apart = place - j % shape[1]
            if j != i and (
                (scorer.causal and apart < 0)
                or (mask is not None and not mask[j])
                or (scorer.window is not None and apart >= scorer.window)
                or (scorer.voters == "surer" and entropy(own[j]) > entropy(own[i]))
            ):
                continue
            voters.append(j)
        like = torch.zeros(len(voters), dtype=x.dtype)
        if scorer.weight is not None:
            like = x[i] @ scorer.weight @ x[voters].T / scorer.temperature / math.sqrt(x.shape[1])
        rows.append(like.softmax(-1) @ own[voters])
    return torch.stack(rows).log()


@drawn(st.data())
def test_votes_follow_the_equation(data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    causal = data.draw(st.booleans())
    window = data.draw(st.none() | st.integers(1, 10)) if causal else None
    torch.manual_seed(data.draw(st.integers(0, 99)))
    scorer = SimilarityScorer(
        4,
        LinearScorer(4, 3),
        data.draw(st.sampled_from([0.3, 1.0, math.inf])),
        window,
        data.draw(st.sampled_from(["all", "surer"])),
        causal,
    ).double()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(batch * length, 4, dtype=torch.float64, requires_grad=True)
    mask = data.draw(st.none() | st.just(torch.rand(batch * length) < 0.7))
    context = RoutingContext(shape=(batch, length), mask=mask)
    found, own = scorer(x, context)
    expected = slow(scorer, x, (batch, length), mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own, scorer.own(x, context).softmax(-1))
    leaves = [x, *scorer.parameters()]
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def router(**options: Any) -> SimilarityRouter:
    torch.manual_seed(0)
    made = SimilarityRouter(4, 5, 2, **options).double()
    torch.nn.init.normal_(made.scorer.own.weight)
    return made


X = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IN_ROWS = RoutingContext(shape=(2, 6))


@pytest.mark.parametrize("options", [{"window": 1}, {"start": 0.0}, {"temperature": 1e-9}])
def test_it_is_the_plain_router_when_only_the_own_vote_counts(options: dict[str, Any]) -> None:
    ours, plain = router(**options), TopKRouter(4, 5, 2).double()
    plain.scorer.weight.data = ours.scorer.own.weight.data
    x = X / X.norm(dim=1, keepdim=True)  # so that nothing is more like a thing than itself
    found, expected = ours(x, IN_ROWS), plain(x)
    assert torch.equal(found.experts, expected.experts)
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.probabilities, expected.probabilities)


def test_alone_in_its_sequence_a_thing_decides_by_itself() -> None:
    ours = router()
    torch.testing.assert_close(
        ours(X, RoutingContext(shape=(12, 1))).probabilities,
        ours.scorer.own(X, IN_ROWS).softmax(-1),
    )


def test_an_infinite_temperature_is_the_mean() -> None:
    ours = router(temperature=math.inf)
    assert ours.scorer.weight is None
    own = ours.scorer.own(X, IN_ROWS).softmax(-1).view(2, 6, 5)
    mean = own.cumsum(1) / torch.arange(1, 7)[:, None]
    torch.testing.assert_close(ours(X, IN_ROWS).probabilities.view(2, 6, 5), mean)


def test_one_expert_has_it_all() -> None:
    assert torch.equal(SimilarityRouter(4, 1, 1)(X.float()).probabilities, torch.ones(12, 1))


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"voters": "surer"}])
def test_later_things_other_sequences_and_padding_have_no_vote(options: dict[str, Any]) -> None:
    ours = router(**options)
    before = ours(X, IN_ROWS).probabilities
    changed = X.clone()
    changed[3] = 7
    after = ours(changed, IN_ROWS).probabilities
    assert torch.equal(after[:3], before[:3]) and torch.equal(after[6:], before[6:])
    assert not torch.equal(after[4], before[4])
    mask = torch.arange(12) != 3
    padded = RoutingContext(shape=(2, 6), mask=mask)
    kept = ours(changed, padded).probabilities[mask]
    torch.testing.assert_close(kept, ours(X, padded).probabilities[mask])


def test_an_expert_chosen_by_others_votes_teaches_their_scores() -> None:
    """Unlike a plain router's, whose p_i does not depend on x_j."""
    ours, x = router(), X.clone().requires_grad_()
    weights = ours(x, IN_ROWS).weights
    (gradient,) = torch.autograd.grad(weights[5, 0], x)
    assert (gradient[:6].abs().sum(1) > 1e-9).all() and not gradient[6:].any()


def test_votes_make_choices_steadier_without_training() -> None:
    """Specification, item 11: 128 tokens in 8 clusters, tokens and gate perturbed by 15 %."""
    changes: dict[str, list[float]] = {"own": [], "1": [], "half": [], "entropy": [], "agree": []}
    for seed in range(20):
        torch.manual_seed(seed)
        centres = torch.randn(8, 32)
        cluster = torch.arange(128) % 8
        x = centres[cluster] + 0.6 * torch.randn(128, 32)
        x = x / x.square().mean().sqrt()
        rows = torch.randn(8, 32) / math.sqrt(32)
        other = x + 0.15 * torch.randn_like(x)
        others = rows + 0.15 * rows.std() * torch.randn_like(rows)

        def decided(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            scorer = SimilarityScorer(32, LinearScorer(32, 8), causal=False)
            scorer.own.weight.data = rows
            voted, own = scorer(x, RoutingContext())
            return voted.exp().detach(), own.detach()

        (p, r), (p_, r_) = decided(x, rows), decided(other, others)
        uniform = [0.5 * own + 0.5 * own.mean(0) for own in (r, r_)]
        for name, (a, b) in {"own": (r, r_), "1": (p, p_), "half": uniform}.items():
            changes[name].append(float((a.argmax(1) != b.argmax(1)).float().mean()))
        changes["entropy"].append(float((entropy(p) - entropy(r)).mean()))
        same = cluster[:, None] == cluster
        agree = [float((d.argmax(1)[:, None] == d.argmax(1))[same].float().mean()) for d in (p, r)]
        changes["agree"].append(agree[0] - agree[1])
    mean = {name: sum(values) / len(values) for name, values in changes.items()}
    assert mean["1"] < 0.85 * mean["own"] and mean["1"] < mean["half"]
    assert mean["entropy"] > 0.05 and mean["agree"] > 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"window": 0}, "window=0"),
        ({"window": 3, "causal": False}, "window=3"),
        ({"voters": "sure"}, "unknown voters 'sure'"),
        ({"start": 1.5}, "start=1.5"),
        ({"gate": "sigmoid"}, "unknown gate over probabilities 'sigmoid'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        router(**options)
    if "gate" not in options and "causal" not in options:
        with pytest.raises(InputError, match=said.removeprefix("unknown voters ")):
            RoutedLayers("similarity", options=options)
