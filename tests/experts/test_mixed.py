import pytest
import torch
from torch import nn

from dispatches import assert_equal_results, results, routing
from polypath.errors import InputError
from polypath.experts import ExpertList


class Counting(nn.Module):
    """Squares its rows, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, rows):
        self.asked += 1
        return rows.square()


def bank(engine=None) -> ExpertList:
    modules = [
        nn.Linear(4, 4),
        nn.Identity(),
        nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 4)),
    ]
    return ExpertList([*modules, Counting()], engine).double()


@pytest.mark.parametrize("engine", ["reference", "stream"])
@pytest.mark.parametrize("things", [0, 1, 20])
def test_each_row_goes_through_its_modules(engine, things):
    experts, record = bank(engine), routing(things, 4, 2)
    x, probe = torch.randn(2, things, 4, dtype=torch.float64)
    x.requires_grad_()
    found = results(experts, x, record, probe)
    y = torch.zeros(things, 4, dtype=torch.float64)
    for t, chosen in enumerate(record.experts.tolist()):
        for k, e in enumerate(chosen):
            if e >= 0:
                y[t] += record.weights[t, k] * experts[e](x[t : t + 1])[0]
    leaves = {"x": x, "gates": record.weights} | dict(experts.named_parameters())
    values = list(leaves.values())
    if y.requires_grad:
        grads = torch.autograd.grad(y, values, probe, materialize_grads=True)
    else:
        grads = [torch.zeros_like(leaf) for leaf in values]
    assert_equal_results(found, {"y": y} | dict(zip(leaves, grads, strict=True)), 1e-12)


@pytest.mark.parametrize("engine", [None, "reference", "stream"])
def test_experts_without_rows_are_not_called(engine):
    experts = bank(engine)
    experts(torch.randn(5, 4, dtype=torch.float64), routing(5, 4, 2, idle=1))
    assert experts[3].asked == 0
    experts(torch.randn(50, 4, dtype=torch.float64), routing(50, 4, 2))
    assert experts[3].asked == 1


def test_a_routing_over_another_number_of_experts_is_refused():
    with pytest.raises(InputError, match="a routing over 5 experts for 4 modules"):
        bank()(torch.zeros(3, 4, dtype=torch.float64), routing(3, 5, 1))


def test_parameters_are_those_of_a_list():
    assert "0.weight" in bank().state_dict()
