import math

import pytest
import torch

from polypath.diagnosis import roughness, routing_cosines
from polypath.errors import InputError


@pytest.mark.parametrize(
    ("cosines", "wanted"),
    [
        ((0.5, 0.5, 0.5), 0.0),
        ((0.9, 0.3, 0.6), 0.3333),
        ((0.2, -0.1, 0.4), 0.5833),
        ((1.0, 0.0, 0.0), 0.6667),
    ],
)
def test_worked_roughness(cosines: tuple, wanted: float) -> None:
    assert float(roughness(torch.tensor([cosines]).double())) == pytest.approx(wanted, abs=1e-4)


def test_roughness_without_a_positive_cosine_is_none() -> None:
    assert math.isnan(float(roughness(torch.tensor([[-0.2, -0.1, -0.4]]))))
    assert math.isnan(float(roughness(torch.tensor([[0.0, 0.0]]))))


def test_embeddings_are_means_of_rows_and_do_not_know_the_experts_names() -> None:
    torch.manual_seed(0)
    gates = [torch.rand(7, 5).softmax(1) for _ in range(3)]
    rows = [torch.randn(5, 6) for _ in range(3)]
    found = routing_cosines(gates, rows)
    assert found.shape == (7, 2)
    for n in range(7):
        for layer in range(2):
            a, b = (sum(gates[i][n, e] * rows[i][e] for e in range(5)) for i in (layer, layer + 1))
            assert float(found[n, layer]) == pytest.approx(
                float(a @ b / a.norm() / b.norm()), abs=1e-6
            )
    order = torch.randperm(5)
    named = routing_cosines([g[:, order] for g in gates], [v[order] for v in rows])
    torch.testing.assert_close(named, found)
    with pytest.raises(InputError, match="gates of 1 layers, rows of 3"):
        routing_cosines(gates[:1], rows)
