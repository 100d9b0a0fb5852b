import pytest
import torch

from polypath.diagnosis import chance_overlap, stream_usage, usage_entropy, usage_overlap
from polypath.errors import InputError
from polypath.routing import Routing


def test_usage_is_the_share_of_choices() -> None:
    experts = torch.tensor([[0, 1], [0, 2], [3, 2], [3, -1]])
    routing = Routing(torch.zeros(4, 4), experts, torch.ones(4, 2))
    usage = stream_usage(routing, torch.tensor([0, 0, 1, 1]), 3)
    assert usage[0].tolist() == [0.5, 0.25, 0.25, 0]
    assert usage[1].tolist() == pytest.approx([0, 0, 0.25, 0.75])
    assert usage[2].tolist() == [0, 0, 0, 0]


def test_worked_entropies() -> None:
    rows = torch.tensor([[1.0] * 8, [8.0] + [0.0] * 7, [2.0] * 4 + [0.0] * 4]).double() / 8
    assert usage_entropy(rows).tolist() == pytest.approx([1.0, 0.0, 2 / 3])
    four = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).double() / 8
    assert float(usage_entropy(four)) == pytest.approx(0.875)
    assert usage_entropy(torch.ones(2, 1)).tolist() == [0, 0]


def test_overlaps_by_hand() -> None:
    usage = torch.zeros(3, 8).double()
    usage[0, :2], usage[1, 1:3], usage[2, 6:] = 0.5, 0.5, 0.5
    overlap = usage_overlap(usage)
    assert overlap.diagonal().tolist() == [1, 1, 1] and torch.equal(overlap, overlap.T)
    assert float(overlap[0, 1]) == pytest.approx(1 / 3) and float(overlap[0, 2]) == 0
    assert usage_overlap(torch.full((2, 8), 0.125)).eq(1).all()  # of equal ones the first
    with pytest.raises(InputError, match="share=0"):
        usage_overlap(usage, 0)


@pytest.mark.parametrize(("experts", "wanted"), [(16, 0.158), (64, 0.146), (256, 0.144)])
def test_chance_is_that_of_random_sets(experts: int, wanted: float) -> None:
    assert chance_overlap(experts) == pytest.approx(wanted, abs=5e-4)
    torch.manual_seed(0)
    usage = torch.rand(400, experts)
    pairs = usage_overlap(usage).triu(1)
    drawn = float(pairs.sum()) / (400 * 399 / 2)
    assert drawn == pytest.approx(wanted, abs=3e-3)
