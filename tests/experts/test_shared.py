import pytest
import torch
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts import SharedExpert


@pytest.mark.parametrize("kind", ["swiglu", "geglu", "gelu", "relu", "relu2"])
def test_equation(kind: str) -> None:
    expert = SharedExpert(8, 5, kind).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    hidden = x @ expert.up.weight.T
    match kind:
        case "swiglu":
            hidden = F.silu(hidden[..., :5]) * hidden[..., 5:]
        case "geglu":
            hidden = F.gelu(hidden[..., :5], approximate="tanh") * hidden[..., 5:]
        case "gelu":
            hidden = F.gelu(hidden)
        case "relu":
            hidden = hidden.clamp_min(0)
        case "relu2":
            hidden = hidden.clamp_min(0) ** 2
    wanted = hidden @ expert.down.weight.T
    torch.testing.assert_close(expert(x), wanted)
    parts = (x, *expert.parameters())
    found = torch.autograd.grad(expert(x).square().sum(), parts)
    torch.testing.assert_close(found, torch.autograd.grad(wanted.square().sum(), parts))


def test_variance_stays() -> None:
    y = SharedExpert(256, 512, "relu2")(torch.randn(200, 256))
    assert 1.2 < y.var() < 1.8  # the mean fourth power of half of a normal variable is 1.5


def test_unknown_kinds_are_told() -> None:
    with pytest.raises(
        InputError, match="unknown feed-forward kind 'swigl'; did you mean 'swiglu'"
    ):
        SharedExpert(8, 5, "swigl")
