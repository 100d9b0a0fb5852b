import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.surgery.clusters import balanced


@given(
    count=st.integers(1, 4), size=st.integers(1, 5), dim=st.integers(1, 4), seed=st.integers(0, 5)
)
def test_every_row_is_in_one_of_equal_clusters(count: int, size: int, dim: int, seed: int) -> None:
    rows = torch.randn(count * size, dim, generator=torch.Generator().manual_seed(seed))
    found = balanced(rows, count)
    assert found.shape == (count, size)
    assert sorted(found.flatten().tolist()) == list(range(count * size))


def test_directions_that_are_apart_are_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3).repeat_interleave(4, 0)
    order = torch.randperm(12, generator=generator)
    lengths = 1 + torch.rand(12, 1, generator=generator)
    rows = lengths * (centres + 0.05 * torch.randn(12, 3, generator=generator))[order]
    for cluster in balanced(rows, 3):
        assert len({int(order[row]) // 4 for row in cluster}) == 1


def test_a_row_goes_elsewhere_where_a_cluster_is_full() -> None:
    rows = torch.tensor([[1.0, 0], [1, 0.01], [1, 0.02], [0, 1]])
    found = [sorted(cluster) for cluster in balanced(rows, 2).tolist()]
    assert sorted(found) == [[0, 1], [2, 3]]
    with pytest.raises(InputError, match="3 rows in 2"):
        balanced(rows[:3], 2)
