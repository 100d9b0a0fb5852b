import pytest
import torch

from polypath.graphs.dropout import Dropout, dropout


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_entries_stay_with_their_chance_and_are_scaled(share: float) -> None:
    x = torch.randn(101, 333)  # not a multiple of four
    found = dropout(x, share)
    kept = found != 0
    torch.testing.assert_close(found[kept], x[kept] / (1 - share), rtol=2e-4, atol=0)
    error = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(float(kept.float().mean()) - (1 - share)) < 4 * error + 1 / 2**17
    both = kept[:, 1:] & kept[:, :-1]  # neighbours are drawn apart
    assert abs(float(both.float().mean()) - (1 - share) ** 2) < 6 * error + 1 / 2**16


def test_the_same_entries_have_gradients() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    found = dropout(x, 0.5)
    (slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(slope, (found / x).detach())
    assert found.dtype == torch.float64 and 0 < (slope == 0).sum() < 35


def test_a_seed_gives_the_same_draw_and_evaluation_none() -> None:
    x, module = torch.ones(40, 3), Dropout(0.3)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(module(x))
    assert torch.equal(*found) and not torch.equal(found[0], module(x))
    assert module.eval()(x) is x and dropout(x, 0.0) is x
    assert dropout(torch.empty(0, 3), 0.5).shape == (0, 3)
