import math

import pytest
import torch
from torch import Tensor
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

from dispatches import assert_equal_results, results, routing, stirred
from polypath.errors import InputError
from polypath.experts import ClampedSwiGLU, FeedForwardExperts
from polypath.experts.activations import ACTIVATIONS
from polypath.routing import Routing


def by_hand(bank: FeedForwardExperts, x: Tensor, record: Routing) -> Tensor:
    """Slot after slot, as the equation reads."""
    w_in, b_in, w_out, b_out = bank.weights()
    y = [torch.zeros(x.shape[1], dtype=x.dtype) for _ in x]
    for t, chosen in enumerate(record.experts.tolist()):
        for k, e in enumerate(chosen):
            if e < 0:
                continue
            hidden = w_in[e] @ x[t] + (0 if b_in is None else b_in[e])
            out = w_out[e] @ bank.network.activation(hidden) + (0 if b_out is None else b_out[e])
            y[t] = y[t] + record.weights[t, k] * out
    return torch.stack(y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [*ACTIVATIONS, ClampedSwiGLU(limit=0.7)], ids=str)
def test_the_plain_loop_by_hand(kind, bias, transposed):
    bank = FeedForwardExperts(4, 3, 5, kind, bias, transposed, engine="reference").double()
    stirred(bank)
    record = routing(9, 4, 2, idle=1)
    x, probe = torch.randn(2, 9, 3, dtype=torch.float64)
    x.requires_grad_()
    found = results(bank, x, record, probe)
    y = by_hand(bank, x, record)
    leaves = {"x": x, "gates": record.weights} | dict(bank.named_parameters())
    grads = torch.autograd.grad(y, list(leaves.values()), probe)
    assert_equal_results(found, {"y": y} | dict(zip(leaves, grads, strict=True)), 1e-12)


def test_weights_of_mixtral_fit_as_they_are():
    config = MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=4)
    config._experts_implementation = "eager"
    theirs, ours = MixtralExperts(config), FeedForwardExperts(4, 8, 12)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x, record = torch.randn(10, 8), routing(10, 4, 2, empty=0.0, dtype=torch.float32)
    expected = theirs(x, record.experts, record.weights)
    torch.testing.assert_close(ours(x, record), expected, rtol=1e-5, atol=1e-4)


def test_weights_of_gpt_oss_fit_as_they_are():
    config = GptOssConfig(hidden_size=8, intermediate_size=12, num_local_experts=4)
    config._experts_implementation = "eager"
    theirs = GptOssExperts(config)
    activation = ClampedSwiGLU(theirs.alpha, theirs.limit)
    ours = FeedForwardExperts(4, 8, 12, activation, bias=True, transposed=True)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x, record = torch.randn(10, 8), routing(10, 4, 2, empty=0.0, dtype=torch.float32)
    expected = theirs(x, record.experts, record.weights)
    torch.testing.assert_close(ours(x, record), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_fresh_weights_keep_the_variance_of_their_input(transposed):
    bank = FeedForwardExperts(3, 64, 200, bias=True, transposed=transposed)
    w_in, b_in, w_out, b_out = bank.weights()
    assert w_in.shape == (3, 400, 64)
    assert w_out.shape == (3, 64, 200)
    assert w_in.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.05)
    assert w_out.std().item() == pytest.approx(1 / math.sqrt(200), rel=0.05)
    assert not b_in.any()
    assert not b_out.any()


def test_parameters_are_named_as_in_transformers():
    gated = FeedForwardExperts(2, 4, 8, bias=True)
    names = ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"]
    assert [name for name, _ in gated.named_parameters()] == names
    plain = FeedForwardExperts(2, 4, 8, "gelu")
    assert {n: tuple(p.shape) for n, p in plain.named_parameters()} == {
        "up_proj": (2, 8, 4),
        "down_proj": (2, 4, 8),
    }


def test_an_unknown_kind_gets_the_nearest_name():
    with pytest.raises(
        InputError, match="unknown feed-forward kind 'swigl'; did you mean 'swiglu'"
    ):
        FeedForwardExperts(2, 4, 8, "swigl")


def test_it_says_what_it_is():
    text = repr(FeedForwardExperts(2, 4, 8, ClampedSwiGLU(), transposed=True))
    assert "2 × 4 → 8 → 4, ClampedSwiGLU(alpha=1.702, limit=7.0), transposed" in text
    assert "2 × 4 → 8 → 4, Gated(curve=silu)" in repr(FeedForwardExperts(2, 4, 8))
