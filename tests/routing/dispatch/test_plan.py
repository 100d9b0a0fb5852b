import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.routing.dispatch.plan import _by_numpy, _by_torch, plan


@pytest.mark.parametrize("make", [plan, _by_numpy, _by_torch])
@given(st.integers(0, 9), st.integers(1, 4), st.integers(1, 40_000), st.randoms())
def test_plan_is_the_list_of_filled_slots_by_expert(make, things, slots, num_experts, random):
    ids = [[random.randrange(-1, num_experts) for _ in range(slots)] for _ in range(things)]
    made = make(torch.tensor(ids, dtype=torch.int64).view(things, slots), num_experts)
    filled = [(e, t * slots + k, t) for t, row in enumerate(ids) for k, e in enumerate(row)]
    filled = sorted((e, slot, t) for e, slot, t in filled if e >= 0)
    assert made.slots.tolist() == [slot for _, slot, _ in filled]
    assert made.things.tolist() == [t for *_, t in filled]
    served = [e for e, *_ in filled]
    assert made.sizes == [served.count(e) for e in range(num_experts)]
    assert made.counts.tolist() == made.sizes
