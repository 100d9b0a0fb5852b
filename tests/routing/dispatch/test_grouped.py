import pytest
import torch
from torch import nn

from dispatches import Shape, assert_equal_results, results
from polypath.errors import InputError
from polypath.experts.mixed import ExpertList
from polypath.routing.dispatch.grouped import linear
from polypath.routing.dispatch.plan import plan

SHAPE = Shape(30, 4, 2, 1, 8, 16, "swiglu", True, False, 0.1)


def grouped_linear(rows, weight, bias, counts):
    experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = plan(experts[:, None], len(counts))
    return linear(rows, weight, bias, order, order.counts.cumsum(0, dtype=torch.int32))


@pytest.mark.parametrize("sizes", [(8, 16), (3, 5), (1, 1), (8, 3), (3, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_product_of_any_size_and_layout(sizes, dtype, transposed):
    ins, outs = sizes
    counts = [2, 0, 5, 1]
    weight = torch.randn(4, ins, outs).mT if transposed else torch.randn(4, outs, ins)
    leaves = [
        t.to(dtype).requires_grad_() for t in (torch.randn(8, ins), weight, torch.randn(4, outs))
    ]
    found = grouped_linear(*leaves, counts)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    parts = wide[0].split(counts)
    truth = torch.cat([r @ w.T + b for r, w, b in zip(parts, *wide[1:], strict=True)])
    names = ["y", "rows", "weight", "bias"]
    ours = dict(zip(names, [found, *torch.autograd.grad(found.sum(), leaves)], strict=True))
    theirs = dict(zip(names, [truth, *torch.autograd.grad(truth.sum(), wide)], strict=True))
    assert_equal_results(ours, theirs, 1e-5 if dtype == torch.float32 else 3e-2)


def test_columns_of_a_larger_matrix_are_rows_too():
    rows, weight = torch.randn(6, 10), torch.randn(2, 4, 4)
    columns = rows[:, 1:5]
    found = grouped_linear(columns, weight, None, [4, 2])
    truth = torch.cat([columns[:4] @ weight[0].T, columns[4:] @ weight[1].T])
    torch.testing.assert_close(found, truth)


def test_double_precision_is_refused_in_one_line():
    bank, record = SHAPE.bank(), SHAPE.routing()
    bank.engine = "grouped"
    with pytest.raises(InputError, match=r"no grouped product in torch\.float64"):
        bank(torch.zeros(30, 8, dtype=torch.float64), record)


def test_different_networks_are_refused_in_one_line():
    record = SHAPE.routing(torch.float32)
    bank = ExpertList([nn.Linear(8, 8) for _ in range(4)], engine="grouped")
    with pytest.raises(InputError, match="SideBySide has no grouped products"):
        bank(torch.zeros(30, 8), record)


def test_second_derivatives():
    bank, record = SHAPE.bank(torch.float32), SHAPE.routing(torch.float32)
    x = torch.randn(30, 8, requires_grad=True)

    def curvature():
        (grad,) = torch.autograd.grad(bank(x, record).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    bank.engine = "reference"
    truth = curvature()
    bank.engine = "grouped"
    torch.testing.assert_close(curvature(), truth, rtol=1e-3, atol=1e-3)


def test_results_are_the_same_every_time():
    bank, record = SHAPE.bank(torch.float32), SHAPE.routing(torch.float32)
    bank.engine = "grouped"
    x = torch.randn(30, 8, requires_grad=True)
    first, second = (results(bank, x, record, torch.ones_like(x)) for _ in range(2))
    assert_equal_results(first, second, 0.0)
