from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from polypath.errors import InputError
from polypath.recipes.analogseeker import (
    MAIN,
    Config,
    best_of,
    leaking,
    models,
    network_claims,
    networks,
    questions,
    text_claims,
)
from polypath.surgery.distiller import Distilled, Record
from recipe_runs import first_column, outcome_of


def test_arms_differ_in_how_they_are_held_alone() -> None:
    assert [len(own) for own in networks().values()] == [7, 4, 4]
    assert {held.by for held in networks()[MAIN].values()} == {"reverse", "forward"}
    held = models()
    assert held["λ = 0"].weight == 0 and held["λ = 0.1"].weight == 0.1
    assert {one.by for one in held.values()} == {"reverse", "l2-sp"}


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="text_seeds=0; at least 1"):
        Config(text_seeds=0)
    with pytest.raises(InputError, match="pretraining=0"):
        Config(pretraining=0)


def facts_of_network(valid: tuple[float, float], gain: float) -> dict[str, Any]:
    """λ = 0.3 is better in the test; which of both validates better is given."""
    facts = {"λ = 0": {"A": 0.6, "B": 0.7, "valid": 0.9}}
    for weight, seen, more in zip((0.1, 0.3), valid, (gain, gain + 0.1), strict=True):
        facts[f"reverse, λ = {weight}"] = {"A": 0.6 + more, "B": 0.7 + more, "valid": seen}
        facts[f"forward, λ = {weight}"] = {"A": 0.6, "B": 0.7 - more, "valid": 1.0}
    return facts


def test_weights_of_networks_are_chosen_on_validation() -> None:
    own = [facts_of_network((0.8, 0.7), gain) for gain in (0.03, 0.031, 0.032)]
    betters, keeps, reverse, worse = network_claims(own)
    assert betters.measured == pytest.approx(0.031) and betters.held is True
    assert keeps.held is True and reverse.measured == pytest.approx(0.062)
    assert worse.measured == pytest.approx(0.031) and worse.held is True
    own = [facts_of_network((0.7, 0.8), gain) for gain in (0.03, 0.031, 0.032)]
    assert network_claims(own)[0].measured == pytest.approx(0.131)


def facts_of_text(domain: float, general: float, valid: float) -> dict[str, Any]:
    last = {"domain": domain, "general": general}
    best = {"domain": domain - 0.5, "general": general - 1, "epoch": 1}
    return {"curve": [{"domain": valid, "general": general}], "last": last, "best": best}


def test_models_are_compared_where_they_validate_best() -> None:
    start = [{"domain": 9.0, "general": 4.0, "kl": 0.0, "moved": 0.0} for _ in range(3)]
    tuned = {
        "λ = 0": [facts_of_text(7.0, 10.0 + i, 1.0) for i in range(3)],
        "λ = 0.1": [facts_of_text(6.0, 6.0 + 0.1 * i, 5.0 - 1.5 * i) for i in range(3)],
        "λ = 1": [facts_of_text(5.0, 5.0, 4.0) for _ in range(3)],
        "L2-SP, 0.01": [facts_of_text(5.5, 7.0, 4.0) for _ in range(3)],
        "L2-SP, 0.1": [facts_of_text(0.5, 4.0, 9.0) for _ in range(3)],
    }
    assert [one["last"]["domain"] for one in best_of(tuned, "λ")] == [5.0, 6.0, 6.0]
    claims = text_claims(start, tuned)
    starts, ends, halves, early, early_general, pull, pull_general = claims
    assert starts.held is True and ends.measured == pytest.approx(-1.0)
    wanted = sum(a / b for a, b in ((2.0, 6.0), (2.1, 7.0), (2.2, 8.0))) / 3
    assert halves.measured == pytest.approx(wanted) and halves.held is True
    assert early.measured == pytest.approx(6.0 - 6.5)
    assert early_general.measured == pytest.approx(6.1 - 10.0)
    assert pull.measured == pytest.approx((5 + 6 + 6) / 3 - 5.5)
    assert pull_general.measured == pytest.approx((5 + 6.1 + 6.2) / 3 - 7)


def test_leaks_are_counted_in_both_kinds_of_splits() -> None:
    records = [Record(f"{n} {i}", "", "", "a", f"n{n}") for n in range(30) for i in range(4)]
    found = leaking(Distilled(records, {}), seed=0)
    assert found["by node"] == 0
    # A node of four stays together by record with probability 0.8⁴ + 2 · 0.1⁴, 0.41.
    assert 8 < found["by record"] < 27
    alone = [Record(f"{n}", "", "", "a", f"n{n}") for n in range(30)]
    assert leaking(Distilled(alone, {}), seed=0) == {"by node": 0, "by record": 0}


def test_questions_are_made_of_any_text(tmp_path: Path) -> None:
    path = tmp_path / "stages.md"
    path.write_text(
        "# Stages\n\nA cascode is a stack of two transistors that share one current.\n\n"
        "# Mirrors\n\nA current mirror is a circuit of 2 transistors and 1 reference.\n"
    )
    made = questions(path)
    assert {record.node for record in made.records} == {
        "domain/text/stages#1",
        "domain/text/mirrors#1",
    }
    answers = {record.question: record.answer for record in made.records}
    assert answers["What is a cascode?"] == "a stack of two transistors that share one current"
    assert answers["What is 2 + 1?"] == "3"
    assert all(a.question != b.question for a, b in combinations(made.records, 2))


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = ["--seeds", "2", "--steps", "20", "--text-seeds", "2", "--limit-mb", "0.1"]
    options += ["--domain-kb", "4", "--pretraining", "4", "--epochs", "2"]
    outcome = outcome_of(tmp_path / "run", "run analogseeker", *options)
    assert first_column(outcome, 1) == ["before", *models()]
    assert len(outcome["claims"]) == 12 and len(outcome["figures"]) == 4
    held = {claim["claim"]: claim["held"] for claim in outcome["claims"]}
    (starts,) = (name for name in held if "starts as plain" in name)
    (leaks,) = (name for name in held if name.startswith("Questions"))
    assert held[starts] is True and held[leaks] is True
    assert (tmp_path / "run" / "questions.jsonl").stat().st_size > 1000


def test_a_text_that_is_too_short_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short\n" * 20)
    with pytest.raises(InputError, match="200 bytes; domain_kb=50 needs 100000"):
        Config(domain=tmp_path / "short.txt").special()
