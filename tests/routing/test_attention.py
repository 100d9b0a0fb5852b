"""The numbers named here are those of the specification of Graph of Tokens."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.routing import (
    Attention,
    AttentionRouter,
    AttentionScorer,
    LinearScorer,
    RoutingContext,
    TopKRouter,
)
from polypath.routing.attention import head_entropy, log_posterior, log_posterior_of, sides_of

BATCH, HEADS, LENGTH, WIDTH, DIM, EXPERTS = 2, 4, 5, 3, 6, 5
THINGS = BATCH * LENGTH


def attended(seed: int = 0, groups: int = 2, dtype: torch.dtype = torch.float64) -> Attention:
    """A causal attention with values shared by groups of heads, its output as it has to be."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    scores = normal(BATCH, HEADS, LENGTH, LENGTH).masked_fill(later, -torch.inf)
    probabilities, values = scores.softmax(-1), normal(BATCH, groups, LENGTH, WIDTH)
    projection = normal(DIM, HEADS * WIDTH)
    heads = probabilities @ values.repeat_interleave(HEADS // groups, 1)
    output = heads.transpose(1, 2).flatten(2) @ projection.T
    return Attention(probabilities, values, projection, output)


def seen_values(attention: Attention) -> Tensor:
    """v' (B, H, M, D), made in full."""
    heads = attention.probabilities.shape[1]
    values = attention.values.repeat_interleave(heads // attention.values.shape[1], 1)
    maps = attention.projection.unflatten(1, (heads, -1))
    return heads * torch.einsum("bhmw,dhw->bhmd", values, maps)


def test_the_mean_over_heads_and_places_is_the_output() -> None:
    attention = attended()
    mean = (attention.probabilities @ seen_values(attention)).mean(1)
    torch.testing.assert_close(mean, attention.output)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (10, [0.5006, 0.3004, 0.1990]),
        (1, [0.5496, 0.3298, 0.1206]),
        (0.5, [0.6111, 0.3667, 0.0222]),
        (0.1, [0.625, 0.375, 0.0]),
    ],
)
def test_the_worked_posterior(sigma: float, expected: list[float]) -> None:
    values = torch.tensor([[[[0, 0], [1, 1], [2, 0]]]], dtype=torch.float64)
    probabilities = torch.tensor([[[[0.5, 0.3, 0.2]]]], dtype=torch.float64)
    output = torch.tensor([[[0.7, 0.3]]], dtype=torch.float64)
    attention = Attention(probabilities, values, torch.eye(2).double(), output)
    width = torch.full((1, 1, 1), float(sigma**2)).double()
    found = log_posterior(attention, sides_of(attention, width)).softmax(-1).flatten()
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=6e-5)


def posterior(attention: Attention, width: Tensor) -> Tensor:
    """(B, H, N, M): A exp(−‖ū − v'‖² / 2 width), not normalised, as the equation reads."""
    apart = attention.output[:, None, :, None] - seen_values(attention)[:, :, None]
    return attention.probabilities * (-apart.square().sum(-1) / (2 * width[:, None])).exp()


@drawn(seed=st.integers(0, 99), groups=st.sampled_from([1, 2, 4]), sigma=st.floats(1.0, 9.0))
def test_posteriors_follow_the_equation(seed: int, groups: int, sigma: float) -> None:
    attention = attended(seed, groups)
    width = torch.full((BATCH, LENGTH, 1), sigma**2).double()
    expected = posterior(attention, width)
    expected = expected / expected.sum(-1, keepdim=True)
    sides = sides_of(attention, width)
    torch.testing.assert_close(log_posterior(attention, sides).softmax(-1), expected)
    entropy = torch.special.entr(expected).sum(-1).transpose(1, 2)
    torch.testing.assert_close(head_entropy(attention, sides), entropy)
    heads = torch.randint(HEADS, (BATCH, LENGTH))
    chosen = expected.transpose(1, 2).take_along_dim(heads[..., None, None], 2).squeeze(2)
    torch.testing.assert_close(log_posterior_of(attention, sides, heads).softmax(-1), chosen)


@drawn(seed=st.integers(0, 99), heads=st.sampled_from(["surest", "all"]), relative=st.booleans())
def test_votes_follow_the_equation(seed: int, heads: Any, relative: bool) -> None:
    attention = attended(seed)
    sigma = 1.5 if relative else 6.0
    scorer = AttentionScorer(LinearScorer(DIM, EXPERTS), sigma, heads, relative).double()
    torch.nn.init.normal_(scorer.own.weight)
    x = torch.randn(THINGS, DIM, dtype=torch.float64)
    found, own = scorer(x, context(attention))
    unit = attention.output.square().sum(-1, keepdim=True) if relative else 1.0
    weights = posterior(attention, sigma**2 * torch.ones(BATCH, LENGTH, 1) * unit)
    if heads == "all":
        weights = weights.sum(1)
    else:
        each = weights / weights.sum(-1, keepdim=True)
        entropy = torch.special.entr(each).sum(-1)
        so_far = entropy.cumsum(-1) / torch.arange(1, LENGTH + 1)
        surest = so_far.argmin(1)
        weights = torch.stack(
            [torch.stack([each[b, surest[b, i], i] for i in range(LENGTH)]) for b in range(BATCH)]
        )
    weights = weights / weights.sum(-1, keepdim=True)
    expected = (weights @ own.view(BATCH, LENGTH, EXPERTS)).view(THINGS, EXPERTS)
    torch.testing.assert_close(found.exp(), expected)


def context(attention: Attention | None = None, **values: Any) -> RoutingContext:
    return RoutingContext(shape=(BATCH, LENGTH), attention=attention or attended(), **values)


X = torch.randn(THINGS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def router(**options: Any) -> AttentionRouter:
    torch.manual_seed(0)
    made = AttentionRouter(DIM, EXPERTS, 2, **options).double()
    torch.nn.init.normal_(made.scorer.own.weight)
    return made


def test_it_is_the_plain_router_when_things_attend_to_themselves() -> None:
    own = replace(attended(), probabilities=torch.eye(LENGTH).double().expand(BATCH, HEADS, -1, -1))
    for options in ({}, {"heads": "all"}, {"sigma": math.inf}):
        ours, plain = router(**options), TopKRouter(DIM, EXPERTS, 2).double()
        plain.scorer.weight.data = ours.scorer.own.weight.data
        found, expected = ours(X, context(own)), plain(X)
        assert torch.equal(found.experts, expected.experts)
        torch.testing.assert_close(found.weights, expected.weights)


def test_limits_of_sigma() -> None:
    attention = attended()
    raw = (attention.probabilities.mean(1) @ own()).view(THINGS, EXPERTS)
    for sigma in (math.inf, 1e6):
        found = router(sigma=sigma, heads="all")(X, context()).probabilities
        torch.testing.assert_close(found, raw, rtol=1e-6, atol=1e-8)
    apart = (attention.output[:, None, :, None] - seen_values(attention)[:, :, None]).norm(dim=-1)
    apart = apart.masked_fill(attention.probabilities == 0, torch.inf)
    nearest = apart.transpose(1, 2).flatten(2).argmin(-1) % LENGTH
    expected = own().gather(1, nearest[..., None].expand(-1, -1, EXPERTS)).view(THINGS, EXPERTS)
    found = router(sigma=1e-3, relative=False, heads="all")(X, context()).probabilities
    torch.testing.assert_close(found, expected)


def own() -> Tensor:
    return router().scorer.own(X, RoutingContext()).softmax(-1).view(BATCH, LENGTH, EXPERTS)


@pytest.mark.parametrize("options", [{}, {"heads": "all"}, {"sigma": math.inf}])
def test_what_is_later_changes_nothing_before(options: dict[str, Any]) -> None:
    """With a head chosen from the whole sequence it would."""
    attention, ours = attended(), router(**options)
    later = attended(7)
    parts = {
        name: torch.cat([getattr(attention, name)[:, :, :3], getattr(later, name)[:, :, 3:]], 2)
        for name in ("probabilities", "values")
    }
    output = torch.cat([attention.output[:, :3], later.output[:, 3:]], 1)
    changed = X.view(BATCH, LENGTH, DIM).clone()
    changed[:, 3:] = 1
    found = ours(changed.view(THINGS, DIM), context(replace(attention, **parts, output=output)))
    before, after = (
        r.probabilities.view(BATCH, LENGTH, EXPERTS) for r in (ours(X, context()), found)
    )
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


def test_gradients_reach_the_attention_unless_detached() -> None:
    for detach in (False, True):
        attention = attended()
        for tensor in (attention.probabilities, attention.values, attention.output):
            tensor.requires_grad_()
        found = router(detach=detach)(X, context(attention)).weights
        found[:, 0].sum().backward()
        grads = [t.grad for t in (attention.probabilities, attention.values, attention.output)]
        assert all((g is None) == detach for g in grads)
        assert detach or all(g.isfinite().all() and g.any() for g in grads)


def test_what_is_missing_or_misfits_is_told() -> None:
    with pytest.raises(InputError, match="AttentionRouter needs `attention`"):
        router()(X, RoutingContext(shape=(BATCH, LENGTH)))
    with pytest.raises(InputError, match=r"attention of 2 sequences of 5 things; .* 1 sequences"):
        router()(X, RoutingContext(attention=attended()))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"sigma": 0.0}, "sigma=0.0"), ({"start": -0.1}, "start=-0.1")],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        router(**options)
    with pytest.raises(InputError, match=said):
        RoutedLayers("attention", options=options)
    with pytest.raises(InputError, match="unknown heads 'some'"):
        router(heads="some")
