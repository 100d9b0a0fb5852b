import pytest
import torch

from polypath.diagnosis import effective_dimension, routed_kernel
from polypath.errors import InputError


def test_limits_of_the_effective_dimension() -> None:
    torch.manual_seed(0)
    half = torch.randn(9, 4).double()
    kernel = half @ half.T
    assert effective_dimension(kernel, 1e-9) == pytest.approx(4, abs=1e-5)
    assert effective_dimension(kernel, 1e9) == pytest.approx(float(kernel.trace()) / 1e9, rel=1e-6)
    inverse = torch.linalg.inv(kernel + 0.3 * torch.eye(9))
    assert effective_dimension(kernel, 0.3) == pytest.approx(float((kernel @ inverse).trace()))
    with pytest.raises(InputError, match="ridge=0"):
        effective_dimension(kernel, 0)


def test_the_kernel_of_experts_under_a_router() -> None:
    torch.manual_seed(0)
    gates = torch.rand(6, 3).softmax(1)
    kernels = torch.stack([(h := torch.randn(6, 4)) @ h.T for _ in range(3)])
    raw = routed_kernel(gates, kernels, normalised=False)
    for i in range(6):
        for j in range(6):
            wanted = sum(gates[i, e] * gates[j, e] * kernels[e, i, j] for e in range(3))
            torch.testing.assert_close(raw[i, j], wanted)
    unit = routed_kernel(gates, kernels)
    torch.testing.assert_close(unit.diagonal(), torch.ones(6))
    torch.testing.assert_close(unit[0, 1], raw[0, 1] / (raw[0, 0] * raw[1, 1]).sqrt())
    same = gates[:1].expand(6, 3)
    wanted = (same[0, :, None, None].square() * kernels).sum(0)
    torch.testing.assert_close(routed_kernel(same, kernels, normalised=False), wanted)
