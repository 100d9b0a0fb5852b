import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.routing import PregatingScorer, RoutingContext


def scorer(width: int = 8, heads: int = 2) -> PregatingScorer:
    torch.manual_seed(0)
    made = PregatingScorer(20, 3, width, heads)
    for norm in made.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return made


def test_the_published_size() -> None:
    with torch.device("meta"):
        made = PregatingScorer(32_000, 7, 512, 4)
    assert sum(p.numel() for p in made.parameters()) == 17_965_063


def reference(made: PregatingScorer, ids: torch.Tensor) -> torch.Tensor:
    """The equations as they read, one token and one head at a time, with complex rotations."""
    h = made.embedding(ids)
    x = F.rms_norm(h, (8,), made.norms[0].weight, 1e-6)
    q, k, v = made.q(x), made.k(x), made.v(x)
    half = 2
    turned = []
    for part in (q, k):
        rows = []
        for t in range(len(ids)):
            heads = []
            for head in part[t].view(2, 4):
                turn = torch.polar(
                    torch.ones(half), t * torch.exp(-math.log(1e4) * torch.arange(half) / half)
                )
                both = torch.complex(head[:half], head[half:]) * turn
                heads.append(torch.cat([both.real, both.imag]))
            rows.append(torch.stack(heads))
        turned.append(torch.stack(rows))
    q, k = turned
    out = torch.zeros(len(ids), 8)
    for t in range(len(ids)):
        for head in range(2):
            shares = (k[: t + 1, head] @ q[t, head]).softmax(0)
            out[t, 4 * head : 4 * head + 4] = shares @ v[: t + 1].view(-1, 2, 4)[:, head]
    h = h + made.o(out)
    h = h + made.down(F.silu(made.up(F.rms_norm(h, (8,), made.norms[1].weight, 1e-6))))
    return made.leave(F.rms_norm(h, (8,), made.norms[2].weight, 1e-6))


def test_it_is_the_equations() -> None:
    made, ids = scorer(), torch.randint(20, (7,))
    torch.testing.assert_close(
        made.decide(ids[None])[0], reference(made, ids), rtol=1e-4, atol=1e-4
    )


@given(length=st.integers(1, 8), cut=st.integers(0, 8), seed=st.integers(0, 9))
def test_later_tokens_change_nothing_and_memory_gives_the_same(
    length: int, cut: int, seed: int
) -> None:
    made = scorer()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, (2, length), generator=generator)
    cut = min(cut, length)
    whole = made.decide(ids)
    if cut:
        torch.testing.assert_close(made.decide(ids[:, :cut]), whole[:, :cut], rtol=1e-4, atol=1e-4)
    kept: list[torch.Tensor] = []

    def remember(told: torch.Tensor) -> torch.Tensor:
        kept.append(told)
        return torch.cat(kept, 1)

    parts = []
    for t in range(length):
        positions = torch.full((2, 1), t)
        parts.append(made.decide(ids[:, t : t + 1], positions, None, remember))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_padding_is_not_read() -> None:
    made, ids = scorer(), torch.randint(20, (1, 5))
    padded = F.pad(ids, (3, 0))
    mask = torch.tensor([[False] * 3 + [True] * 5])
    positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]])
    found = made.decide(padded, positions, mask)
    torch.testing.assert_close(found[:, 3:], made.decide(ids), rtol=1e-4, atol=1e-4)
    assert found.isfinite().all()


def test_layers_share_the_scores_of_a_pass() -> None:
    made, tokens = scorer(), torch.randint(20, (6,))
    context = RoutingContext(shape=(2, 3), tokens=tokens)
    calls: list[int] = []
    made.embedding.register_forward_hook(lambda *told: calls.append(1))
    first = made(torch.randn(6, 4), context)
    assert made(torch.randn(6, 4), context) is first and len(calls) == 1
    torch.testing.assert_close(first, made.decide(tokens.view(2, 3)).flatten(0, 1))
    made(torch.randn(6, 4), RoutingContext(shape=(2, 3), tokens=tokens.clone()))
    with torch.no_grad():
        made(torch.randn(6, 4), context)
    assert len(calls) == 4  # decide, other tokens, and no graph
    assert made.__getstate__()["_known"] is None


def test_what_is_missing_is_told() -> None:
    with pytest.raises(InputError, match="PregatingScorer needs `tokens`"):
        scorer()(torch.randn(3, 4), RoutingContext(shape=(1, 3)))
    with pytest.raises(InputError, match="width=10 must be a multiple of 2 · 4"):
        PregatingScorer(20, 3, 10, 4)
