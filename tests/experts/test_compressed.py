import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts.activations import ACTIVATIONS
from polypath.experts.compressed import CompressedExpert, LowRankSparse


@given(ins=st.integers(1, 6), outs=st.integers(1, 6), bias=st.booleans(), seed=st.integers(0, 9))
def test_a_split_is_the_matrix_and_shedding_changes_nothing(
    ins: int, outs: int, bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outs, ins, generator=generator)
    offset = torch.randn(outs, generator=generator) if bias else None
    x = torch.randn(3, ins, generator=generator)
    for rank in range(1, min(ins, outs) + 1):
        one = LowRankSparse.split(weight, rank, offset)
        torch.testing.assert_close(one.dense(), weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one(x), F.linear(x, weight, offset), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            one.sparse[::2] = 0
        before = one(x)
        one.shed()
        kept = [row for row in range(1, outs, 2) if row in one.kept]
        assert one.kept.tolist() == kept and len(one.sparse) == len(kept)
        torch.testing.assert_close(one(x), before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(F.linear(x, one.dense(), offset), before, rtol=1e-4, atol=1e-5)


def test_the_first_singular_vectors_go_into_the_product() -> None:
    """MC-SMoE, property 7."""
    one = LowRankSparse.split(torch.diag(torch.tensor([4.0, 2.0, 1.0])), 1)
    torch.testing.assert_close(one.sparse, torch.diag(torch.tensor([0.0, 2.0, 1.0])))
    one.shed()
    assert one.kept.tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["swiglu", "relu"])
def test_an_expert_apart_computes_what_it_did(kind: str) -> None:
    activation = ACTIVATIONS[kind]
    weights = [torch.randn(activation.width * 5, 4), None, torch.randn(4, 5), None]
    expert = CompressedExpert.split(weights, activation, 2)
    rows = torch.randn(6, 4)
    wanted = F.linear(activation(F.linear(rows, weights[0])), weights[2])
    torch.testing.assert_close(expert(rows), wanted, rtol=1e-4, atol=1e-4)
    assert expert.maps == [expert.inner, expert.outer]


def test_sizes_that_misfit_are_refused() -> None:
    for rank, rows in ((0, 2), (4, 2), (2, 6)):
        with pytest.raises(InputError, match="1 ≤ rank"):
            LowRankSparse(3, 5, rank, rows)
