"""Routings and banks for tests of dispatch, and every result of one call."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from polypath.experts import FeedForwardExperts
from polypath.experts.activations import Activation
from polypath.routing import Routing


def routing(
    things: int, num_experts: int, k: int, empty: float = 0.2, idle: int = 0, dtype=torch.float64
) -> Routing:
    """Random choices, the last `idle` experts never chosen, a share of the slots left empty.

    An expert may serve a thing in two slots, which a record does not rule out.
    """
    scores = torch.randn(things, num_experts, dtype=dtype)
    experts = torch.randint(num_experts - idle, (things, k))
    experts[torch.rand(things, k) < empty] = -1
    gates = torch.rand(things, k, dtype=dtype).masked_fill(experts < 0, 0.0)
    return Routing(scores, experts, gates.requires_grad_())


@dataclass(frozen=True)
class Shape:
    """What hypothesis draws: sizes of a bank and of a routing."""

    things: int
    num_experts: int
    k: int
    idle: int
    dim: int
    hidden: int
    kind: str | Activation
    bias: bool
    transposed: bool
    empty: float

    def bank(self, dtype: torch.dtype = torch.float64) -> FeedForwardExperts:
        made = FeedForwardExperts(
            self.num_experts, self.dim, self.hidden, self.kind, self.bias, self.transposed
        )
        return stirred(made.to(dtype))

    def routing(self, dtype: torch.dtype = torch.float64) -> Routing:
        sizes = self.things, self.num_experts, self.k
        return routing(*sizes, empty=self.empty, idle=self.idle, dtype=dtype)


def stirred(bank: nn.Module) -> nn.Module:
    """The bank with biases that are not zero."""
    for name, parameter in bank.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return bank


@st.composite
def shapes(draw: st.DrawFn, kinds: list[str | Activation], aligned: bool = False) -> Shape:
    """Nothing, one thing or a few; one expert or a few, some of them idle."""
    num_experts = draw(st.integers(1, 5))
    sizes = st.sampled_from([4, 8]) if aligned else st.integers(1, 5)
    return Shape(
        things=draw(st.sampled_from([0, 1, 2, 7, 30])),
        num_experts=num_experts,
        k=draw(st.integers(1, 3)),
        idle=draw(st.integers(0, num_experts - 1)),
        dim=draw(sizes),
        hidden=draw(sizes),
        kind=draw(st.sampled_from(kinds)),
        bias=draw(st.booleans()),
        transposed=draw(st.booleans()),
        empty=draw(st.sampled_from([0.0, 0.3, 1.0])),
    )


def results(bank: nn.Module, x: Tensor, record: Routing, probe: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of ⟨output, probe⟩ with respect to everything that has one."""
    y = bank(x, record)
    leaves = {"x": x, "gates": record.weights} | dict(bank.named_parameters())
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if y.requires_grad:
        grads = torch.autograd.grad(y, list(leaves.values()), probe, materialize_grads=True)
    else:  # no expert ran
        grads = tuple(torch.zeros_like(leaf) for leaf in leaves.values())
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


def assert_equal_results(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float):
    """All results agree, relative to the largest value of each."""
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        scale = expected.abs().max().clamp_min(1e-3).item() if expected.numel() else 1.0
        torch.testing.assert_close(
            found[name],
            expected,
            rtol=0,
            atol=tolerance * scale,
            check_dtype=False,
            msg=lambda text, name=name: f"{name}: {text}",
        )
