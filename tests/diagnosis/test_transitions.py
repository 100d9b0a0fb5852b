import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.diagnosis import between, membership, transitions
from polypath.errors import InputError
from polypath.routing import Routing

from .conftest import routings, units


@st.composite
def stacked(draw, count: int = 2) -> list[Routing]:
    things = draw(st.integers(0, 12))
    return [draw(routings(things)) for _ in range(count)]


@given(stacked())
def test_flow_is_counted_pair_by_pair(layers: list[Routing]) -> None:
    above, below = layers
    flow = torch.zeros(above.num_experts, below.num_experts, dtype=torch.float64)
    for here, there in zip(units(above), units(below), strict=True):
        for a, part in here.items():
            for b, other in there.items():
                flow[a, b] += part * other
    torch.testing.assert_close(between(above, below), flow)


@given(stacked())
def test_sums_are_things(layers: list[Routing]) -> None:
    above, below = layers
    flow = between(above, below)
    served = [bool(a and b) for a, b in zip(units(above), units(below), strict=True)]
    assert float(flow.sum()) == pytest.approx(sum(served))
    rows = torch.zeros(above.num_experts, dtype=torch.float64)
    for split, both in zip(units(above), served, strict=True):
        for expert, part in split.items():
            rows[expert] += part * both
    torch.testing.assert_close(flow.sum(1), rows)


@given(routings())
def test_a_thing_is_one_unit(routing: Routing) -> None:
    rows = [sum(split.values()) for split in units(routing)]
    assert membership(routing).sum(1).tolist() == pytest.approx(rows)


@given(stacked(3))
def test_layers_are_taken_in_turn(layers: list[Routing]) -> None:
    flows = transitions({str(i): layer for i, layer in enumerate(layers)})
    assert len(flows) == 2
    for flow, above, below in zip(flows, layers, layers[1:], strict=False):
        torch.testing.assert_close(flow, between(above, below))


def test_layers_of_different_forwards_do_not_fit() -> None:
    def routing(things: int) -> Routing:
        experts = torch.zeros(things, 1, dtype=torch.int64)
        return Routing(torch.zeros(things, 2), experts, torch.ones(things, 1))

    with pytest.raises(InputError, match="3 things above, 4 below"):
        between(routing(3), routing(4))
