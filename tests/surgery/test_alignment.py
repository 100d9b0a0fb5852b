import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.surgery.alignment import agreement, align, permutation, reorder
from polypath.surgery.slices import outputs


def drawn(experts: int, dim: int, width: int, gated: bool, bias: bool, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inner = (1 + gated) * width
    offsets = (normal(experts, inner), normal(experts, dim)) if bias else (None, None)
    return [normal(experts, inner, dim), offsets[0], normal(experts, dim, width), offsets[1]]


@given(
    dim=st.integers(1, 4),
    width=st.integers(1, 6),
    gated=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_permuted_copy_is_found_and_put_back(
    dim: int, width: int, gated: bool, bias: bool, seed: int
) -> None:
    kind = "swiglu" if gated else "relu"
    one = drawn(1, dim, width, gated, bias, seed)
    pair = [None if part is None else torch.cat([part, part]) for part in one]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    copy = [None if part is None else part[1] for part in pair]
    reorder(copy, order)
    rows = torch.randn(5, dim)
    every = outputs(pair, kind, rows)
    torch.testing.assert_close(every[:, 1], every[:, 0], rtol=1e-4, atol=1e-4)
    align(pair)
    for part in pair:
        if part is not None:
            torch.testing.assert_close(part[1], part[0], rtol=0, atol=0)


def test_alignment_changes_no_expert_and_agrees_more() -> None:
    stack = drawn(4, 6, 9, True, True, 0)
    rows = torch.randn(5, 6)
    before = outputs(stack, "swiglu", rows)
    first = [part[0].clone() for part in stack]

    def agreed() -> list[float]:
        return [
            float(agreement(first, [part[e] for part in stack]).diagonal().sum()) for e in range(4)
        ]

    least = agreed()
    align(stack)
    torch.testing.assert_close(outputs(stack, "swiglu", rows), before, rtol=1e-4, atol=1e-4)
    for now, then in zip(agreed()[1:], least[1:], strict=True):
        assert now > then
    for part, own in zip(stack, first, strict=True):
        torch.testing.assert_close(part[0], own, rtol=0, atol=0)


def test_the_hand_case() -> None:
    """Property 1: W_in = I, W_out = (1, 2), and a copy with its units swapped."""
    one = [torch.eye(2), None, torch.tensor([[1.0, 2.0]]), None]
    other = [torch.eye(2).flip(0), None, torch.tensor([[2.0, 1.0]]), None]
    assert agreement(one, other).tolist() == [[2, 2], [5, 2]]
    assert permutation(one, other).tolist() == [1, 0]
    x = torch.tensor([[3.0, 1.0]])
    mean = [None if a is None else (a + b)[None] / 2 for a, b in zip(one, other, strict=True)]
    assert float(outputs(mean, "relu", x)) == 6.0  # without alignment; the truth is 5
    reorder(other, permutation(one, other))
    mean = [None if a is None else (a + b)[None] / 2 for a, b in zip(one, other, strict=True)]
    assert float(outputs(mean, "relu", x)) == 5.0
