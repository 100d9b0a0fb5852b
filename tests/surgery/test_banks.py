import pytest
import torch
from torch import nn

from hosts import tiny_switch
from polypath import attach
from polypath.errors import InputError
from polypath.experts import ExpertList, FactoredExperts, FeedForwardExperts
from polypath.routing import Routing
from polypath.surgery.banks import stacks, write
from polypath.surgery.slices import outputs


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_stacks_are_what_a_bank_computes_with(bias: bool, transposed: bool) -> None:
    bank = FeedForwardExperts(3, 4, 5, "swiglu", bias, transposed)
    other = FeedForwardExperts(3, 4, 5, "swiglu", bias, transposed)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    rows = torch.randn(6, 4)
    chosen = torch.randint(3, (6, 1))
    routing = Routing(torch.zeros(6, 3), chosen, torch.ones(6, 1))
    wanted = outputs(stacks(bank), "swiglu", rows)[torch.arange(6), chosen[:, 0]]
    torch.testing.assert_close(bank(rows, routing), wanted, rtol=1e-4, atol=1e-5)
    write(other, stacks(bank))
    torch.testing.assert_close(other(rows, routing), bank(rows, routing))


def test_experts_apart_are_stacked_too() -> None:
    model = attach(tiny_switch())
    bank = model.encoder.block[1].layer[1].mlp.experts
    weights = stacks(bank)
    assert isinstance(bank, ExpertList) and weights[1] is None
    rows = torch.randn(5, 16)
    every = outputs(weights, "relu", rows)
    for number, expert in enumerate(bank):
        torch.testing.assert_close(every[:, number], expert(rows))
    write(bank, [None if part is None else part.flip(0) for part in weights])
    torch.testing.assert_close(bank[0](rows), every[:, -1])


def test_other_banks_are_refused() -> None:
    with pytest.raises(InputError, match="no bank of feed-forward experts"):
        stacks(FactoredExperts(2, 4, 5, rank=2))
    with pytest.raises(InputError, match="no bank of feed-forward experts"):
        stacks(ExpertList([nn.Linear(4, 4)]))
