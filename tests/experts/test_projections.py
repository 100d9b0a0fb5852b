import pytest
import torch
from torch import Tensor

from polypath.experts.projections import projections

PARTS = [slice(None), slice(3), slice(3, 6), slice(0, None, 2)]


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients_are_those_of_the_equation(part: slice, transposed: bool) -> None:
    rows = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    stored = torch.randn(3, 4, 6, dtype=torch.float64).requires_grad_()
    if not transposed:
        stored = torch.randn(3, 6, 4, dtype=torch.float64).requires_grad_()

    def weights() -> Tensor:
        return stored.mT if transposed else stored

    found = projections(rows, weights(), part)
    wanted = torch.einsum("rd,efd->ref", rows, weights()[:, part])
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, (rows, stored), grad),
        torch.autograd.grad(wanted, (rows, stored), grad),
    )


def test_half_weights_meet_single_rows() -> None:
    rows = torch.randn(5, 4, requires_grad=True)
    weights = torch.randn(3, 6, 4).bfloat16().requires_grad_()
    found = projections(rows, weights, slice(3))
    torch.testing.assert_close(found, torch.einsum("rd,efd->ref", rows, weights[:, :3].float()))
    found.sum().backward()
    assert found.dtype == torch.float32 and weights.grad.dtype == torch.bfloat16
    assert not weights.grad[:, 3:].any()


@pytest.mark.parametrize("which", ["rows", "weights"])
def test_what_is_frozen_gets_no_gradient(which: str) -> None:
    rows, weights = torch.randn(5, 4), torch.randn(3, 6, 4)
    moving = rows if which == "rows" else weights
    moving.requires_grad_()
    projections(rows, weights, slice(3)).sum().backward()
    assert (rows.grad is None) == (which == "weights")
    assert (weights.grad is None) == (which == "rows")
