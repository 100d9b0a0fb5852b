from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs import Incoming, pass_messages, pass_statistics
from polypath.graphs.passing import messages, reference

SIZES = st.tuples(
    st.integers(1, 7), st.integers(0, 20), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)
)
MESSAGES = ["times", "plus", "minimum"]


def drawn(sizes: tuple[int, ...], dependent: bool) -> tuple[Incoming, Tensor, Tensor, Tensor]:
    """Edges, states, values and boundary, the last three with gradients; of whole numbers."""
    nodes, count, types, queries, width = sizes
    edges = Incoming.of(
        torch.randint(nodes, (2, count)), nodes, torch.randint(types, (count,)), types
    )
    shape = (types, queries, width) if dependent else (types, width)

    def numbers(*size: int) -> Tensor:
        return torch.randint(-3, 4, size).double().requires_grad_()

    return edges, numbers(nodes, queries, width), numbers(*shape), numbers(nodes, queries, width)


def assert_same(found: Tensor, wanted: Tensor, parts: list[Tensor]) -> None:
    """In value, and in the gradients of all parts."""
    torch.testing.assert_close(found, wanted)
    slope = torch.randn_like(found)
    grads = torch.autograd.grad(found, parts, slope, retain_graph=True)
    others = torch.autograd.grad(wanted, parts, slope, allow_unused=True, retain_graph=True)
    for part, one, other in zip(parts, grads, others, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(part) if other is None else other)


@pytest.mark.parametrize("message", MESSAGES)
@given(sizes=SIZES, dependent=st.booleans())
def test_fused_is_as_the_equation_reads(message: str, sizes: tuple, dependent: bool) -> None:
    edges, *parts = drawn(sizes, dependent)
    for aggregate in ("sum", "max", "min"):
        (wanted,) = reference(edges, *parts, message, (aggregate,))
        assert_same(pass_messages(edges, *parts, message, aggregate), wanted, parts)
    ones = torch.ones(sizes[1], dtype=torch.float64)
    found = pass_statistics(edges, *parts, message)
    for one, other in zip(found, pass_statistics(edges, *parts, message, ones), strict=True):
        assert_same(one, other, parts)


@given(sizes=SIZES)
def test_the_reference_is_a_loop(sizes: tuple) -> None:
    edges, h, values, boundary = (
        part.detach() if isinstance(part, Tensor) else part for part in drawn(sizes, True)
    )
    graph = list(zip(edges.sources, edges.targets, edges.types, strict=True))
    for message, product in (
        ("times", torch.mul),
        ("plus", torch.add),
        ("minimum", torch.minimum),
    ):
        total, high = boundary.clone(), boundary.clone()
        for source, target, kind in graph:
            m = product(h[source], values[kind])
            total[target] += m
            high[target] = torch.maximum(high[target], m)
        found = reference(edges, h, values, boundary, message, ("sum", "max"))
        torch.testing.assert_close(found, (total, high))


def test_gradients_are_numerical_ones() -> None:
    edges, h, values, boundary = drawn((5, 9, 2, 2, 3), True)
    parts = [torch.randn_like(part).requires_grad_() for part in (h, values, boundary)]
    for call in (pass_messages, pass_statistics):
        assert torch.autograd.gradcheck(lambda *own, call=call: call(edges, *own), parts)


def test_single_precision_and_many_columns() -> None:
    edges, *parts = drawn((9, 40, 3, 30, 41), False)
    parts = [torch.randn(part.shape, requires_grad=True) for part in parts]
    found = pass_statistics(edges, *parts)
    wanted = pass_statistics(edges, *parts, weights=torch.ones(40))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_rotations_are_complex_products() -> None:
    edges, h, values, _ = drawn((4, 8, 2, 2, 6), False)
    found = messages(edges, h, values, "rotate")
    x, value = (torch.complex(*part.chunk(2, -1)) for part in (h, values))
    wanted = x[edges.sources] * value[edges.types][:, None]
    torch.testing.assert_close(found, torch.cat([wanted.real, wanted.imag], -1))


def test_weights_multiply_the_messages_of_the_graphs_own_edges() -> None:
    index = torch.tensor([[0, 1, 0], [2, 2, 1]])
    weights = torch.tensor([10.0, 100.0, 1000.0], requires_grad=True)
    h = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    found = pass_messages(
        Incoming.of(index, 3), h, torch.ones(1, 1), torch.zeros_like(h), weights=weights
    )
    assert found.flatten().tolist() == [0.0, 1000.0, 210.0]
    (slope,) = torch.autograd.grad(found.sum(), weights)
    assert slope.tolist() == [1.0, 2.0, 1.0]


def test_kept_edges_are_the_graph_without_the_others() -> None:
    index, types = torch.randint(6, (2, 30)), torch.randint(3, (30,))
    edges, keep = Incoming.of(index, 6, types), torch.rand(30) < 0.5
    found = edges.kept(keep[edges.order])
    wanted = Incoming.of(index[:, keep], 6, types[keep], 3)
    for name in ("starts", "sources", "types", "targets"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert torch.equal(index[:, found.order], index[:, keep][:, wanted.order])


def test_types_come_with_the_graph() -> None:
    data = SimpleNamespace(
        edge_index=torch.tensor([[0, 1], [1, 0]]), edge_type=torch.tensor([4, 1])
    )
    edges = Incoming.of(data)
    assert edges.types.tolist() == [1, 4] and edges.num_types == 5


def test_wrong_input_is_told() -> None:
    index = torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(InputError, match="an edge is of type 3; types are 0 … 2"):
        Incoming.of(index, 2, torch.tensor([0, 3]), 3)
    with pytest.raises(InputError, match=r"edge types \(3,\)"):
        Incoming.of(index, 2, torch.tensor([0, 1, 1]))
    edges, h = Incoming.of(index, 2), torch.zeros(2, 1, 4)
    with pytest.raises(InputError, match=r"h \(2, 1, 4\) .* values \(1, 3\)"):
        pass_messages(edges, h, torch.zeros(1, 3), h)
    with pytest.raises(InputError, match="all float32 or all float64"):
        pass_messages(edges, h, torch.zeros(1, 4).double(), h)
