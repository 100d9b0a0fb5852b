import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.graphs.compilation.processor import SLOPE, GATv2Layer


def drawn(nodes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, edges, an encoder of edges and a mask, two graphs."""
    mask = torch.rand(2, nodes, nodes) < 0.5
    mask |= torch.eye(nodes, dtype=torch.bool)
    return (
        torch.randn(2, nodes, 7).double(),
        torch.randn(2, nodes, nodes, 4).double(),
        torch.randn(6, 4).double(),
        mask,
    )


@pytest.mark.parametrize(("heads", "local", "edges", "norm"), [(1, 1, True, True), (3, 2, 0, 0)])
def test_a_layer_is_as_the_equation_reads(heads: int, local: int, edges: bool, norm: bool) -> None:
    layer = GATv2Layer(7, 6, 6, heads, local, bool(edges), bool(norm)).double()
    z, e, encode, mask = drawn()
    found, attention = layer(z, e, layer.maps(encode), mask)
    width = 6 // heads
    for b in range(2):
        for i in range(5):
            out = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                logits, values = [], []
                for j in range(5):
                    edge = encode @ e[b, i, j]
                    pre = layer.sender(z[b, j]) + layer.receiver(z[b, i]) + layer.edge(edge)
                    logits.append(
                        layer.score[h] @ F.leaky_relu(pre[part], SLOPE)
                        if mask[b, i, j]
                        else torch.tensor(-math.inf).double()
                    )
                    value = layer.value(z[b, j])
                    if layer.edge_value is not None:
                        value = value + layer.edge_value(edge)
                    values.append(value[part])
                alpha = torch.stack(logits).softmax(0)
                torch.testing.assert_close(attention[b, h, i], alpha)
                out.append((alpha[:, None] * torch.stack(values)).sum(0))
            wanted = (torch.cat(out) + layer.skip(z[b, i])).relu()
            for linear in layer.local:
                wanted = linear(wanted).relu()
            torch.testing.assert_close(found[b, i], layer.norm(wanted))


def test_rows_sum_to_one_and_nothing_comes_from_behind_the_mask() -> None:
    layer = GATv2Layer(7, 6, 6, 2).double()
    z, e, encode, mask = drawn()
    _, attention = layer(z, e, layer.maps(encode), mask)
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    assert not attention.masked_select(~mask[:, None]).any()


def test_gradients_are_numerical_ones() -> None:
    layer = GATv2Layer(7, 6, 6, 2, 2).double()
    z, e, encode, mask = drawn(3)

    def call(z: Tensor, encode: Tensor, *_: Tensor) -> Tensor:
        return layer(z, e, layer.maps(encode), mask)[0]

    parts = (z.requires_grad_(), encode.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(call, parts)
