import pytest
import torch

from polypath.diagnosis import generalised, memorised
from polypath.errors import InputError


def test_a_sample_is_memorised_once_its_loss_stays_low() -> None:
    losses = torch.tensor(
        [
            [3.0, 1.0, 1.0, 1.0],
            [3.0, 1.0, 2.5, 1.0],  # a late spike
            [3.0, 1.2, 1.04, 1.0],  # low, but still falling
            [3.0, 3.0, 3.0, 3.0],
            [1.0, 1.0, 1.0, 1.0],
        ]
    )
    assert memorised(losses, 1.5).tolist() == [1, 3, 2, -1, 0]
    assert memorised(losses, 1.5, drift=0.3).tolist() == [1, 3, 1, -1, 0]
    with pytest.raises(InputError, match=r"losses \(4,\)"):
        memorised(losses[0], 1.5)


def test_a_higher_ceiling_never_comes_later() -> None:
    torch.manual_seed(0)
    losses = torch.rand(50, 8).cummin(1).values
    before = memorised(losses, 0.9, drift=1.0)
    for ceiling in (0.7, 0.5, 0.2, 0.05):
        now = memorised(losses, ceiling, drift=1.0)
        late = torch.where(now < 0, 99, now) >= torch.where(before < 0, 99, before)
        assert bool(late.all())
        before = now


def test_a_sample_is_understood_once_it_stays_right() -> None:
    right = torch.tensor(
        [
            [0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
            [0, 1, 0, 1, 1, 1, 1, 1, 1, 1],  # one later error in nine
            [0, 1, 0, 1, 1, 0, 1, 1, 1, 1],  # two of them
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
        dtype=torch.bool,
    )
    assert generalised(right).tolist() == [2, 1, 3, 0, -1]
    assert generalised(right, errors=0).tolist() == [2, 3, 6, -1, -1]
    with pytest.raises(InputError, match="of bool"):
        generalised(right.long())
