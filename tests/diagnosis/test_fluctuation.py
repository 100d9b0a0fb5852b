import math

import pytest
import torch

from hosts import tiny_model
from polypath.diagnosis import fluctuation, heaviest, noise_on_routers
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.routing import Routing, record


def routing(experts: list[list[int]], weights: list[list[float]] | None = None) -> Routing:
    chosen = torch.tensor(experts)
    given = torch.ones(chosen.shape) if weights is None else torch.tensor(weights)
    return Routing(torch.zeros(len(chosen), 4), chosen, given)


def test_the_heaviest_is_by_weight_and_may_be_none() -> None:
    made = routing([[2, 1], [0, 3], [-1, -1], [-1, 3]], [[0.2, 0.8], [0.6, 0.4], [0, 0], [0, 0.1]])
    assert heaviest(made).tolist() == [1, 0, -1, 3]
    assert heaviest(
        Routing(torch.zeros(2, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0))
    ).tolist() == [-1, -1]


def test_changes_of_the_first_and_of_the_set_are_counted_apart() -> None:
    before = routing([[0, 1], [0, 1], [0, 1], [0, 1], [2, -1]], [[0.6, 0.4]] * 5)
    after = routing([[0, 1], [1, 0], [0, 2], [3, 2], [2, -1]], [[0.6, 0.4]] * 5)
    found = fluctuation(before, after)
    assert found.first == pytest.approx(2 / 5) and found.any == pytest.approx(2 / 5)
    assert fluctuation(before, before) == (0, 0)
    mask = torch.tensor([False, True, False, False, True])
    masked = Routing(after.scores, after.experts, after.weights, mask=mask)
    assert fluctuation(before, masked) == (0.5, 0)
    empty = Routing(before.scores[:0], before.experts[:0], before.weights[:0])
    assert math.isnan(fluctuation(empty, empty).first)
    with pytest.raises(InputError, match=r"\(5, 4\) things and experts before, \(2, 4\) after"):
        fluctuation(before, after[:2])


def test_a_wider_routing_of_the_same_experts_has_not_changed() -> None:
    narrow, wide = routing([[0, 1]], [[0.6, 0.4]]), routing([[0, -1, 1]], [[0.6, 0.0, 0.4]])
    assert fluctuation(narrow, wide) == (0, 0)


@torch.no_grad()
def test_routers_see_noise_of_the_size_and_experts_do_not() -> None:
    torch.manual_seed(0)
    model = attach(tiny_model("Llama"), RoutedLayers(num_experts=4, k=4, losses={})).eval()
    ids = torch.randint(50, (4, 16))
    with record(model) as clean:
        model(ids)
    with noise_on_routers(model), record(model) as noisy:
        model(ids)
    with noise_on_routers(model), record(model) as again:
        model(ids)
    with noise_on_routers(model, size=0.0), record(model) as none, record(model) as after:
        logits = model(ids).logits
    assert torch.equal(logits, model(ids).logits)
    for name, one in clean.joined().items():
        assert not torch.equal(one.scores, noisy.joined()[name].scores)
        assert torch.equal(noisy.joined()[name].scores, again.joined()[name].scores)
        assert torch.equal(one.scores, none.joined()[name].scores)
    assert after.keys() == clean.keys()


@torch.no_grad()
def test_noise_moves_linear_scores_by_its_share_of_their_size() -> None:
    torch.manual_seed(0)
    model = attach(tiny_model("Llama"), RoutedLayers(num_experts=4, losses={})).eval()
    ids = torch.randint(50, (64, 16))
    with record(model) as clean:
        model(ids)
    with noise_on_routers(model, size=0.15), record(model) as noisy:
        model(ids)
    name = next(iter(clean))  # before any expert
    before, after = clean.joined()[name].scores, noisy.joined()[name].scores
    ratio = float((after - before).norm() / before.norm())
    assert ratio == pytest.approx(0.15, rel=0.2)
