from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.roma import (
    ARMS,
    COMPARED,
    IMAGES,
    KEPT,
    WEIGHTS,
    WORSE,
    Arm,
    Config,
    claims,
    diagnose,
    entropies,
    fit,
    measured,
    penalty,
    random_neighbours,
    seen_by,
    tuned,
)
from polypath.recipes.skills import collate, skilled
from polypath.surgery.align import AlignConfig
from polypath.surgery.neighbours import answers, chosen_layers
from recipe_runs import first_column, outcome_of

MAKE = partial(skilled, 2.5, 200)
SHORT = AlignConfig(learning_rate=0.02, steps=15, batch=300, refresh=5)


def test_random_neighbours_are_successful_and_know_nothing() -> None:
    able = torch.rand(200) < 0.3
    table = random_neighbours(able, 3, 0)
    assert able[table.indices].all() and table.some.all()
    assert torch.equal(table.weights.sum(1), torch.ones(200).double())
    drawn = torch.bincount(table.indices.flatten(), minlength=200)[able]
    assert drawn.max() < 8 * drawn.double().mean() and (drawn > 0).double().mean() > 0.9
    assert not torch.equal(random_neighbours(able, 3, 1).indices, table.indices)


def test_controls_are_the_penalties_that_they_are_named_for() -> None:
    problem = skilled(2.5, 50, 0)
    seen = seen_by(problem.model, problem.train)
    drawn = torch.tensor([4, 8, 15])
    batch = collate([problem.train[i] for i in drawn])
    r = seen.joined[drawn]
    layers = chosen_layers(problem.model, 5)
    told = {
        "squares": (penalty(problem.model, seen, Arm(penalty="squares"), 0), r.square().sum(1)),
        "entropy": (entropies(layers), -(r * r.log()).sum(1)),
    }
    table = random_neighbours(seen.right, 3, 7)
    far = (r[:, None] - seen.joined[table.indices[drawn]]).mean(1).square().sum(1)
    told["random"] = (penalty(problem.model, seen, Arm(penalty="random"), 7), far)
    for term, wanted in told.values():
        with term(0, drawn, batch.places) as after:
            answers(problem.model, batch)
        torch.testing.assert_close(after().detach(), wanted.mean())


def test_arms_start_from_one_model_and_change_its_router_alone() -> None:
    problem = MAKE(0)
    start = deepcopy(problem.model.state_dict())
    made = {}
    for name, arm in ARMS.items():
        if arm.weights:
            settings = AlignConfig(
                learning_rate=0.02,
                steps=6,
                batch=300,
                weight=arm.weights[-1],
                refresh=2 if arm.refresh else None,
                successful=arm.successful,
            )
            made[name] = tuned(problem, arm, settings)
    for name, model in made.items():
        facts = measured(problem, model)
        assert (facts["moved"], facts["work"], facts["parameters"]) == (0, 1, 1)
        for other, else_ in made.items():
            same = torch.equal(model.layer.router.scorer.weight, else_.layer.router.scorer.weight)
            assert same == (name == other)
    assert all(torch.equal(start[key], value) for key, value in problem.model.state_dict().items())


class Told:
    def __init__(self) -> None:
        self.steps = 0

    def advance(self, loss: float, pace: float) -> None:
        self.steps += 1

    def skip(self, steps: int) -> None:
        self.steps += steps

    def stop(self) -> bool:
        return False


@pytest.mark.parametrize("name", ["base", "router tuning", "RoMA"])
def test_an_arm_tests_what_it_chose_on_other_tasks(name: str) -> None:
    told = Told()
    facts, _ = fit(MAKE, ARMS[name], SHORT, 0, told)
    problem = MAKE(0)
    found = {None: problem.model} if name == "base" else {}
    for weight in ARMS[name].weights:
        settings = AlignConfig(learning_rate=0.02, steps=15, batch=300, weight=weight)
        found[weight] = tuned(problem, ARMS[name], settings)
    rights = {
        weight: float(seen_by(model, problem.validation).right.double().mean())
        for weight, model in found.items()
    }
    assert rights[facts["λ"]] == max(rights.values())
    chosen = seen_by(found[facts["λ"]], problem.unseen)
    assert facts["unseen"] == float(chosen.right.double().mean())
    assert told.steps == len(WEIGHTS)


def test_the_oracle_is_a_bound_of_the_base() -> None:
    facts, _ = diagnose(MAKE, 0, Told())
    problem = MAKE(0)
    for name in ("seen", "unseen"):
        base = float(seen_by(problem.model, getattr(problem, name)).right.double().mean())
        assert facts[name] > base
    assert facts["ideal"] == problem.ideal


def test_claims_are_of_pairs_of_arms_and_of_what_is_kept() -> None:
    names = {
        "skills": [*ARMS, "oracle"],
        "worse": [*WORSE, "oracle"],
        "images": [*IMAGES, "oracle"],
    }
    place = iter(range(100))
    facts: dict = {}
    for problem, arms in names.items():
        facts[problem] = {}
        for arm in [*arms, "oracle"]:
            base = next(place) / 100
            one = {"unseen": base, "seen": base, "agreement": base, "ideal": None}
            kept = {} if arm == "oracle" else {"moved": 0, "work": 1.0, "parameters": 1.0}
            facts[problem][arm] = [one | kept, one | kept]
    judged = claims(facts, 2)
    for claim, (problem, arm, than, *_) in zip(judged, COMPARED, strict=False):
        gap = facts[problem][arm][0]["unseen"] - facts[problem][than][0]["unseen"]
        assert claim.measured == pytest.approx(gap) and claim.baseline == than
        assert claim.held is (gap > 0)
    assert len(judged) == len(COMPARED) + 2 + len(KEPT)
    assert [claim.held for claim in judged[-3:]] == [True] * 3
    facts["images"]["RoMA"][0]["moved"] = 1
    assert claims(facts, 2)[-3].held == "undecided"


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="steps=0"):
        Config(steps=0)
    with pytest.raises(InputError, match="nuisance=7"):
        Config(nuisance=7)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = ["--seeds", "2", "--steps", "4", "--image-steps", "3", "--epochs", "2"]
    outcome = outcome_of(tmp_path / "run", "run roma", *options, "--tested", "60")
    assert first_column(outcome, 0) == [*ARMS, "oracle", "right experts"]
    assert first_column(outcome, 1) == [*WORSE, "oracle", "right experts"]
    assert first_column(outcome, 2) == [*IMAGES, "oracle"]
    assert len(outcome["claims"]) == len(COMPARED) + 2 + len(KEPT)
    assert [claim["held"] for claim in outcome["claims"][-3:]] == [True] * 3
