import math

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts

from polypath.experts.activations import ACTIVATIONS, ClampedSwiGLU

EVERY = [*ACTIVATIONS.values(), ClampedSwiGLU(limit=1.0)]


def by_hand(name: str, hidden: list[float]) -> list[float]:
    """One row, one number at a time."""
    half = len(hidden) // 2
    curves = {
        "swiglu": lambda g: g / (1 + math.exp(-g)),
        "geglu": lambda g: g / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))),
        "gelu": lambda u: u / 2 * (1 + math.erf(u / math.sqrt(2))),
        "relu": lambda u: max(u, 0.0),
        "relu2": lambda u: max(u, 0.0) ** 2,
    }
    if name in ("gelu", "relu", "relu2"):
        return [curves[name](u) for u in hidden]
    return [curves[name](g) * u for g, u in zip(hidden[:half], hidden[half:], strict=True)]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_by_hand(name):
    hidden = torch.randn(5, 6, dtype=torch.float64) * 2
    expected = torch.tensor([by_hand(name, row) for row in hidden.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](hidden), expected)


def test_clamped_swiglu_is_that_of_gpt_oss():
    config = GptOssConfig(hidden_size=4, intermediate_size=3, num_local_experts=1)
    theirs = GptOssExperts(config)
    hidden = 10 * torch.randn(50, 6)
    torch.testing.assert_close(ClampedSwiGLU()(hidden), theirs._apply_gate(hidden))


@pytest.mark.parametrize("activation", EVERY, ids=str)
def test_what_is_written_is_what_autograd_finds(activation):
    hidden = 2 * torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    result = activation(hidden)
    grad = torch.randn_like(result)
    (expected,) = torch.autograd.grad(result, hidden, grad)
    written, again = torch.empty_like(result), torch.empty_like(result)
    hidden_grad, before = torch.empty_like(hidden), grad.clone()
    with torch.no_grad():
        assert activation.forward(hidden, written) is written
        activation.backward(grad, hidden, again, hidden_grad)
    torch.testing.assert_close(written, result)
    torch.testing.assert_close(again, result)
    torch.testing.assert_close(hidden_grad, expected)
    torch.testing.assert_close(grad, before)
