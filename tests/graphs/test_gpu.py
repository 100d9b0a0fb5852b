"""Kernels for a GPU, on one where there is one; else Triton's interpreter runs them on the CPU."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
pytest.importorskip("triton", reason="Triton comes with torch for GPUs")

from polypath.graphs import Incoming, pass_messages, pass_statistics  # noqa: E402
from polypath.graphs.fused import STATISTICS  # noqa: E402
from polypath.graphs.gpu import Gather  # noqa: E402


def drawn(sizes: tuple[int, ...], dependent: bool) -> tuple[Incoming, list[Tensor]]:
    nodes, count, types, queries, width = sizes
    index, kinds = torch.randint(nodes, (2, count)), torch.randint(types, (count,))
    shape = (types, queries, width) if dependent else (types, width)
    shapes = [(nodes, queries, width), shape, (nodes, queries, width)]
    parts = [torch.randint(-3, 4, one).float().requires_grad_() for one in shapes]
    return Incoming.of(index, nodes, kinds, types), parts


@pytest.mark.parametrize("message", ["times", "plus", "minimum"])
@given(
    sizes=st.tuples(
        st.integers(1, 5),
        st.integers(1, 9),
        st.integers(1, 3),
        st.integers(1, 2),
        st.integers(1, 5),
    ),
    dependent=st.booleans(),
)
def test_kernels_are_the_loops_of_the_cpu(message: str, sizes: tuple, dependent: bool) -> None:
    edges, parts = drawn(sizes, dependent)
    moved = [part.detach().to(DEVICE).requires_grad_() for part in parts]
    there = edges.to(DEVICE)
    asked: dict[tuple[str, ...], tuple[Tensor, ...]] = {
        STATISTICS: pass_statistics(edges, *parts, message)
    }
    for name in ("sum", "max", "min"):
        asked[name,] = (pass_messages(edges, *parts, message, name),)
    for names, wanted in asked.items():
        found = Gather.apply(there, *moved, message, names)
        slopes = [torch.randn_like(part) for part in wanted]
        grads = torch.autograd.grad(wanted, parts, slopes)
        others = torch.autograd.grad(found, moved, [slope.to(DEVICE) for slope in slopes])
        for one, other in zip((*found, *others), (*wanted, *grads), strict=True):
            torch.testing.assert_close(one.cpu(), other)
