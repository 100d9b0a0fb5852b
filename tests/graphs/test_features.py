import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from polypath.graphs.features import SparseFeatures, features, linear, thinned
from polypath.graphs.features import _known as known


def drawn(rows: int, columns: int, share: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return x * (torch.rand(rows, columns, generator=generator) < share)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0))
def test_products_and_gradients_are_those_of_the_whole_matrix(
    rows: int, columns: int, share: float, seed: int
) -> None:
    x = drawn(rows, columns, share, seed % 1000)
    weight = torch.randn(4, columns, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    found, wanted = (linear(form, weight, bias) for form in (SparseFeatures.of(x), x))
    torch.testing.assert_close(found, wanted)
    slope = torch.randn_like(found)
    for one, other in zip(
        *(torch.autograd.grad(out, (weight, bias), slope) for out in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_dropout_leaves_entries_or_none_of_them() -> None:
    x = drawn(30, 40, 0.1)
    sparse, one = SparseFeatures.of(x), torch.eye(40, dtype=torch.float64)
    mean = torch.zeros_like(x)
    for _ in range(400):
        found = linear(thinned(sparse, 0.25, True), one)
        ratio = found[x != 0] / x[x != 0]
        torch.testing.assert_close(ratio, (ratio > 0.5).double() / 0.75)
        assert not found[x == 0].any()
        mean += found / 400
    error = x.abs() * (1 / 3 / 400) ** 0.5
    assert ((mean - x).abs() <= 4.5 * error).all()
    torch.testing.assert_close(linear(thinned(sparse, 0.25, False), one), x)
    assert torch.equal(thinned(x, 0.25, False), x)


def test_few_entries_are_taken_one_by_one() -> None:
    few, many = drawn(20, 50, 0.05).float(), drawn(20, 50, 0.5).float()
    found = features(few)
    assert isinstance(found, SparseFeatures) and features(few) is found
    assert features(many) is many and features(many) is many
    wanting = few.clone().requires_grad_()
    assert features(wanting) is wanting
    empty = torch.empty(0, 3)
    assert features(empty) is empty


def test_changed_features_are_looked_at_anew() -> None:
    x = drawn(20, 50, 0.05).float()
    first = features(x)
    x[3, 4] = 7.0
    second = features(x)
    assert isinstance(first, SparseFeatures) and isinstance(second, SparseFeatures)
    torch.testing.assert_close(linear(second, torch.eye(50)), x)
    assert not torch.equal(linear(first, torch.eye(50)), x)
    x.fill_(1.0)
    assert features(x) is x


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_nothing_is_remembered_of_what_is_gone(share: float) -> None:
    before = len(known)
    x = drawn(20, 50, share).float()
    features(x)
    assert len(known) == before + 1
    del x
    gc.collect()
    assert len(known) == before


def test_a_product_in_float64_of_float32_weights() -> None:
    x = drawn(6, 30, 0.08)
    weight = torch.randn(4, 30)
    torch.testing.assert_close(
        linear(SparseFeatures.of(x), weight), F.linear(x.float(), weight), rtol=1e-5, atol=1e-6
    )
