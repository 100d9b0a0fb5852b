"""Addition modulo a prime, and what is seen of a network that learns it."""

import pytest
import torch
from torch.nn import functional as F

from polypath.language import RoutedLayers
from polypath.recipes.arithmetic import SAMPLES, Adder, Pairs, Task, fit, look, pairs

ROUTED = RoutedLayers("soft", num_experts=4, kind="relu", losses={})


class Quiet:
    """A reporter that never asks to stop, and counts."""

    count = 0

    def skip(self, steps: int) -> None:
        pass

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.count += 1

    def stop(self) -> bool:
        return False


def test_every_pair_is_in_one_part() -> None:
    train, test = pairs(7, 0.6, 3)
    both = torch.cat([train.x, test.x]).tolist()
    assert sorted(both) == [[a, b] for a in range(7) for b in range(7)]
    assert len(train.x) == 29  # 0.6 · 49, rounded
    for part in (train, test):
        assert part.y.tolist() == [(a + b) % 7 for a, b in part.x.tolist()]
    assert torch.equal(train.x, pairs(7, 0.6, 3)[0].x)
    assert not torch.equal(train.x, pairs(7, 0.6, 4)[0].x)


def test_what_is_looked_at() -> None:
    torch.manual_seed(0)
    model = Adder(11, ROUTED)
    train, test = pairs(11, 0.7, 0)
    facts, nats, correct = look(model, train, test)
    assert nats.shape == (len(train.x),) and correct.shape == (len(test.x),)
    wanted = float(F.cross_entropy(model(train.x), train.y).detach())
    assert facts["training loss"] == pytest.approx(wanted, rel=1e-5)
    assert facts["test accuracy"] == float(correct.double().mean())
    assert 0 < facts["distance"] < 3 * 4 + 2 and -1 <= facts["cosine"] <= 1
    # A router that knows nothing sends every pair the same way.
    for layer in model.layers:
        torch.nn.init.zeros_(layer.router.scorer.weight)
    same, _, _ = look(model, train, test)
    assert same["distance"] == 0 and same["entropy"] == pytest.approx(1.386294, abs=1e-5)


def test_a_look_does_not_depend_on_gradients_or_on_other_pairs() -> None:
    torch.manual_seed(0)
    model, (train, test) = Adder(11, ROUTED), pairs(11, 0.9, 0)
    facts, _, _ = look(model, train, test)
    with torch.enable_grad():
        again, _, _ = look(model, train, test)
    assert facts == again
    order = torch.cat([torch.randperm(SAMPLES), torch.arange(SAMPLES, len(train.x))])
    moved, _, _ = look(model, Pairs(train.x[order], train.y[order]), test)
    for name in ("distance", "cosine", "entropy", "training loss"):
        assert moved[name] == pytest.approx(facts[name], rel=1e-5), name


def test_training_pairs_are_memorised_first() -> None:
    reporter = Quiet()
    facts, line = fit(ROUTED, 0.0, Task(11, 0.6, 300, 50), 0, reporter)
    assert reporter.count == 6 and [point["step"] for point in facts["curve"]][-1] == 300
    last = facts["curve"][-1]
    assert last["training accuracy"] == 1 and last["test accuracy"] < 0.5
    assert facts["memorised"] is not None and facts["understood"] is None
    assert line.endswith("of the test pairs right") and facts["seconds"] > 0
