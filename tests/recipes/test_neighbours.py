"""What is tuned in the recipe: against plain loops, closed forms, and a second way to λ = 0."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.recipes.neighbours import (
    CLASSES,
    CONTEXT,
    INPUTS,
    ROWS,
    Held,
    Lesson,
    byte_model,
    distance,
    domain_text,
    fit_network,
    perplexity,
    points,
    pretrain,
    tune,
    tuned_network,
)
from polypath.surgery.neighbourhood import frozen


class Silent:
    """A reporter that nobody listens to."""

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None: ...

    def stop(self) -> bool:
        return False


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def test_points_lie_around_the_centre_of_their_class() -> None:
    centres = 5 * torch.randn(CLASSES, INPUTS)
    x, y = points(centres, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cdist(x, centres).argmin(1), y)
    off = x - centres[y]
    assert float(off.std()) == pytest.approx(1, abs=0.01) and float(off.mean().abs()) < 0.01


def test_without_weight_a_network_is_tuned_plainly() -> None:
    start, data = network(), (torch.randn(40, INPUTS), torch.randint(CLASSES, (40,)))
    found = tuned_network(start, data, Held("reverse", 0.0), steps=20, seed=3)
    plain = frozen(start).requires_grad_(True)
    optimiser = torch.optim.Adam(plain.parameters(), 3e-4)
    order = torch.Generator().manual_seed(3)
    for _ in range(20):
        rows = torch.randint(40, (ROWS,), generator=order)
        optimiser.zero_grad()
        F.cross_entropy(plain(data[0][rows]), data[1][rows]).backward()
        optimiser.step()
    for a, b in zip(found.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert float(distance(found, start).detach()) > 0


@pytest.mark.parametrize("way", ["reverse", "forward"])
def test_a_heavy_hold_leaves_a_network_near_its_start(way: Any) -> None:
    start, data = network(), (torch.randn(40, INPUTS), torch.randint(CLASSES, (40,)))
    plain, held = (tuned_network(start, data, Held(way, w), 100, 0) for w in (0.0, 100.0))
    moved = [(m(data[0]) - start(data[0])).detach().norm() for m in (plain, held)]
    assert moved[1] < 0.3 * moved[0]


def test_a_network_forgets_less_where_it_is_held() -> None:
    arms = {"λ = 0": Held("reverse", 0.0), "held": Held("reverse", 1.0)}
    facts, line = fit_network(0.8, 300, arms, 150, 0, Silent())
    assert facts["start"]["A"] > facts["held"]["A"] > facts["λ = 0"]["A"]
    assert facts["λ = 0"]["B"] > facts["start"]["B"]
    assert "of B right at the start" in line and facts["seconds"] > 0
    again, _ = fit_network(0.8, 300, {"held": arms["held"]}, 150, 0, Silent())
    assert again["held"] == facts["held"]


def test_the_distance_is_over_all_parameters() -> None:
    a, b = network(), network()
    flat = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (a, b)]
    torch.testing.assert_close(distance(a, b).detach(), (flat[0] - flat[1]).square().sum())


def test_a_model_that_knows_nothing_has_as_many_choices_as_bytes() -> None:
    model = byte_model()
    assert 0.2e6 < sum(p.numel() for p in model.parameters()) < 0.3e6
    windows = torch.randint(256, (130, CONTEXT + 1))
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # tied: all logits are 0
    assert perplexity(model, windows) == pytest.approx(256, rel=1e-5)
    torch.manual_seed(1)
    model = byte_model()
    with torch.no_grad():
        loss = model(input_ids=windows, labels=windows, use_cache=False).loss
    assert perplexity(model, windows) == pytest.approx(math.exp(float(loss)), rel=1e-5)


# Texts.


def test_a_domain_is_trained_on_validated_and_tested_apart(tmp_path: Path) -> None:
    path = tmp_path / "domain.txt"
    path.write_text("".join(letter * 99 + "\n" for letter in "a" * 20 + "b" * 10 + "c" * 10 + "d"))
    train, valid, test = Lesson(domain=path, domain_kb=2.0).special()
    seen = [train.batch(0, 0, 500), valid, test]
    assert [set(bytes(own.flatten().tolist())) for own in seen] == [
        set(letter.encode() + b"\n") for letter in "abc"
    ]
    with pytest.raises(InputError, match=r"4100 bytes; domain_kb=3 needs 6000"):
        Lesson(domain=path, domain_kb=3.0).special()


def test_no_paragraph_of_the_reference_comes_twice() -> None:
    paragraphs = domain_text(None).split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) > 1000
    assert "Boolean operations" in domain_text(None)


def test_bad_lessons_are_refused() -> None:
    with pytest.raises(InputError, match="epochs=0; at least 1"):
        Lesson(epochs=0)
    with pytest.raises(InputError, match=r"limit_mb=0\.0"):
        Lesson(limit_mb=0.0)


# Language models.

LESSON = Lesson(limit_mb=0.05, domain_kb=4.0, pretraining=15, epochs=3)


@cache
def started(folder: Path) -> dict[str, Any]:
    return pretrain(LESSON, folder, 0, Silent())[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starts")


def test_the_first_step_is_that_of_plain_tuning(folder: Path) -> None:
    facts = started(folder)
    assert facts["kl"] == 0 and facts["moved"] == 0
    assert facts["general"] < 100 and facts["domain"] < 150  # of 256


@pytest.mark.slow
def test_two_ways_not_to_hold_a_model_are_one(folder: Path) -> None:
    started(folder)
    kl, _ = tune(LESSON, folder, Held("reverse", 0.0), 0, Silent())
    l2, _ = tune(LESSON, folder, Held("l2-sp", 0.0), 0, Silent())
    assert kl["last"]["domain"] == pytest.approx(l2["last"]["domain"], rel=1e-3)
    assert kl["last"]["domain"] < 0.9 * started(folder)["domain"]
    curve = [look["domain"] for look in kl["curve"]]
    assert len(curve) == 3 and kl["best"]["epoch"] == 1 + curve.index(min(curve))


@pytest.mark.slow
@pytest.mark.parametrize(("by", "share"), [("reverse", 0.2), ("forward", 0.3), ("l2-sp", 0.8)])
def test_what_is_held_hard_stays(folder: Path, by: Any, share: float) -> None:
    before = started(folder)
    held, _ = tune(LESSON, folder, Held(by, 10.0), 0, Silent())
    plain, _ = tune(LESSON, folder, Held("reverse", 0.0), 0, Silent())
    moved = [abs(math.log(one["last"]["domain"] / before["domain"])) for one in (held, plain)]
    assert moved[0] < share * moved[1]
