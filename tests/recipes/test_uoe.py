"""The two experiments of unlearning: their tasks, what is compared, and a run that is as small."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from polypath.errors import InputError
from polypath.language.corpus import Document
from polypath.plain import decode, encode
from polypath.recipes import forgetting
from polypath.recipes.forgetting import (
    EXPERTS,
    LAYERS,
    LOW,
    Classifier,
    Domains,
    Reading,
    accuracy,
    at,
    label_losses,
    low,
    negative_bits,
    on_domains,
    unigram_entropy,
    ways_of_domains,
    ways_of_text,
    worth,
)
from polypath.recipes.uoe import (
    Config,
    apart,
    claims_on_domains,
    claims_on_text,
    names,
    of_way,
    texts,
)
from polypath.report.outcome import Held
from polypath.surgery.attribution import ranked
from polypath.surgery.objectives import GA, GDIFF, NPO
from polypath.surgery.unlearn import Unlearned
from polypath.training.checkpoint import save_state
from recipe_runs import first_column, outcome_of


class Silent:
    """A reporter that nobody reads."""

    told = 0

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.told += 1

    def stop(self) -> bool:
        return False


def test_domains_are_their_seed_and_as_they_are_described() -> None:
    one, same, other = Domains(1), Domains(1), Domains(2)
    assert torch.equal(one.maps, same.maps) and not torch.equal(one.maps, other.maps)
    torch.testing.assert_close(one.means @ one.means.T, torch.eye(8), atol=1e-5, rtol=0)
    points = one.draw(20_000, [3])
    torch.testing.assert_close(points.x.mean(0), 2 * one.means[3], atol=0.05, rtol=0)
    torch.testing.assert_close(points.x.var(0), torch.ones(24), atol=0.05, rtol=0)
    for n in range(20):
        scores = [float(points.x[n, :6] @ one.maps[3][:, label]) for label in range(4)]
        assert int(points.y[n]) == max(range(4), key=scores.__getitem__)
    mixed = one.draw(5000, [0, 5])
    near = (mixed.x @ one.means.T)[:, [0, 5]].mean(0)
    torch.testing.assert_close(near, torch.ones(2), atol=0.1, rtol=0)


def test_a_classifier_is_seen_as_it_is() -> None:
    model, points = Classifier(), Domains(0).draw(50, range(8))
    right = [int(model(points.x[n : n + 1]).argmax()) == int(points.y[n]) for n in range(50)]
    assert accuracy(points, model) == pytest.approx(sum(right) / 50)
    losses, counts = label_losses(model, {"x": points.x, "labels": points.y})
    wanted = -model(points.x).log_softmax(1)[torch.arange(50), points.y]
    torch.testing.assert_close(losses[:, 0], wanted)
    assert counts.all() and counts.shape == (50, 1)


def test_ways_differ_in_what_is_named() -> None:
    ways = ways_of_domains(9)
    assert len({(way.learning_rate, way.goal, way.steps) for way in ways.values()}) == 1
    assert all(way.objective == GA() for way in ways.values())
    assert ways["all experts and routers"].count == EXPERTS * LAYERS
    assert ways["all experts and routers"].anchor == ways["no anchor"].anchor == 0
    assert ways["uoe"].reduction == "sum" and ways["anchor by mean"].reduction == "mean"
    text = ways_of_text(9, -4.0)
    assert [type(text[way].objective) for way in ("ga", "gdiff", "npo")] == [GA, GDIFF, NPO]
    assert all(text[way].scope == "all" for way in ("ga", "gdiff", "npo"))
    assert text["gdiff in one expert"].scope == text["npo in one expert"].scope == "expert"


def test_experts_by_draw_are_of_the_lower_half() -> None:
    every = ranked({"a": torch.arange(8.0), "b": torch.arange(8.0) + 8})
    for seed in range(5):
        drawn = low(every, 3, seed)
        assert drawn == low(every, 3, seed) and len(set(drawn)) == 3
        assert all(layer == "a" for layer, _ in drawn)
    assert low(every, 3, 0) != low(every, 3, 1)


def test_utility_is_read_where_efficacy_first_falls_to_a_level() -> None:
    curve = [[0.8, 0.7], [0.6, 0.65], [0.7, 0.6], [0.2, 0.4]]
    assert at(curve, 0.9) == 0.7
    assert at(curve, 0.7) == pytest.approx(0.675)
    assert at(curve, 0.4) == pytest.approx(0.6 - 0.2 * 0.3 / 0.5)
    assert at(curve, 0.1) is None


def test_learning_rates_are_chosen_by_reaching_the_goal_then_by_utility() -> None:
    def done(*curve: tuple[float, float]) -> Any:
        points = [{"step": n, "efficacy": e, "utility": u} for n, (e, u) in enumerate(curve)]
        size = {"parameters": 1, "active": 1, "bytes": 4}
        empty = {"operation": "unlearn", "settings": {}, "before": size, "after": size, "moves": []}
        aim = {"layer": "a", "expert": 0, "affinity": 0.5, "rank": 1}
        more = {"targets": [aim], "affinities": {"a": [0.5]}, "affinities_after": {"a": [None]}}
        return decode(
            Unlearned, empty | more | {"curve": points, "overlap": {"a": 1.0}}, "a report"
        )

    never = done((0.9, 0.9), (0.6, 0.9))
    further = done((0.9, 0.9), (0.55, 0.1))
    costly = done((0.9, 0.9), (0.5, 0.2))
    cheap = done((0.9, 0.9), (0.4, 0.8))
    order = sorted([cheap, never, costly, further], key=lambda one: worth(one, 0.5))
    assert order == [never, further, costly, cheap]


def test_entropy_of_bytes() -> None:
    assert unigram_entropy(torch.tensor([7, 7, 7], dtype=torch.uint8)) == 0
    assert unigram_entropy(torch.tensor([0, 1, 2, 255], dtype=torch.uint8)) == pytest.approx(2)


SOURCE = '''"""What it is for."""
# a comment
from a import b


class C:
    """A class."""

    def method(self):
        """Only this."""
'''


def test_docstrings_and_code_are_told_apart() -> None:
    broken = Document("b.py", "def half(")
    found = apart([broken, Document("a.py", SOURCE)], 1)
    docstrings, code = found
    assert docstrings.split("\n\n") == ["Only this.", "A class.", "What it is for.\n"]
    assert "class C" in code and "pass" in code and "comment" not in code and "Only" not in code
    assert apart([Document("a.py", SOURCE)] * 3, len(SOURCE)) == apart(
        [Document("a.py", SOURCE)], 10**9
    )


def text_files(folder: Path) -> list[Path]:
    paths = [folder / "sums.txt", folder / "words.txt"]
    lines = [f"{n} plus {n} is {2 * n}" for n in range(900)]
    paths[0].write_text("\n".join(lines))
    paths[1].write_text("\n".join(f"the word before {line[::-1]}" for line in lines))
    return paths


def test_sources_are_the_files_that_are_named_or_the_library(tmp_path: Path) -> None:
    paths = text_files(tmp_path)
    found = texts(paths, 10**6)
    assert bytes(found["forget.train"].tolist()).startswith(b"0 plus 0 is 0\n")
    assert bytes(found["retain.test"].tolist()).startswith(b"the word before ")
    assert names(Config(data=paths)) == ["sums.txt", "words.txt"]
    own = texts([], 300_000)
    assert all(len(own[f"{source}.valid"]) > 129 for source in ("forget", "retain"))
    assert names(Config()) == ["docstrings", "code"]


def test_a_language_model_learns_both_sources(tmp_path: Path) -> None:
    path = tmp_path / "texts.safetensors"
    save_state(path, texts(text_files(tmp_path), 10**6), {})
    reporter = Silent()
    task = Reading(path, 60, 1, (1e-3,), dim=16, layers=2, context=32, windows=4)
    model = task.learnt(0, reporter)
    assert not model.training and reporter.told == 2
    forget, retain = task.measures("valid")
    assert forget(model) > -5 and retain(model) > -5
    blank = Reading(path, 1, 1, (1e-3,), dim=16, layers=2, context=32, windows=4).learnt(
        0, Silent()
    )
    assert forget(model) > forget(blank) + 1 and retain(model) > retain(blank) + 1
    windows = task.draw("retain", "valid").tiling(4)
    with torch.no_grad():
        wanted = model(input_ids=windows, labels=windows).loss
    assert negative_bits(windows, model) == pytest.approx(-float(wanted) / math.log(2), rel=1e-5)


def test_a_trial_on_domains_tells_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "TESTED", 100)
    monkeypatch.setattr(forgetting, "FORGOTTEN", 4)
    reporter = Silent()
    facts, line = on_domains(10, 2, 0, reporter)
    assert reporter.told == 1 and "uoe keeps" in line
    assert list(facts["ways"]) == list(ways_of_domains(2))
    uoe = facts["ways"]["uoe"]
    assert uoe["steps"] == 2 and len(uoe["curve"]) == 3
    parameters = sum(p.numel() for p in Classifier().parameters())
    one = (2 * 24 * 24 + 8 * 24) / parameters
    assert uoe["share"] == pytest.approx(one)
    assert facts["ways"]["all experts and routers"]["share"] == pytest.approx(
        16 * one - 14 * 8 * 24 / parameters
    )
    lowest = [facts["ways"][way]["gates"][0] for way in facts["ways"] if way.startswith(LOW)]
    assert max(lowest) <= facts["affinities"][7] <= uoe["gates"][0] == facts["affinities"][0]


def facts_of(retain: dict[str, float], seed: int) -> dict[str, Any]:
    way = {"steps": 5, "share": 0.07, "overlap": 0.8, "gates": [0.4, 0.6]}
    ways = {name: way | {"retain": value + 0.001 * seed} for name, value in retain.items()}
    ways["no anchor"] = ways["no anchor"] | {"gates": [0.4, 0.3 + 0.001 * seed]}
    return {"agreement": 0.9 + 0.001 * seed, "ways": ways}


def judged(claims: Any) -> list[Held]:
    return [claim.held for claim in claims]


def test_claims_follow_what_was_measured() -> None:
    kept = dict.fromkeys(ways_of_domains(1), 0.6) | {"uoe": 0.7, "anchor by mean": 0.64}
    kept |= {f"{LOW} 2": 0.65}
    found = judged(claims_on_domains([facts_of(kept, seed) for seed in range(3)]))
    assert found == [True, False, True, True, True, "undecided", True, True, True, True]
    found = judged(
        claims_on_domains([facts_of(kept | {f"{LOW} 2": 0.75}, seed) for seed in range(3)])
    )
    assert found[4] is False
    bits: dict[str, Any] = dict.fromkeys(ways_of_text(1, 0.0), 3.0) | {"uoe": 2.9, "gdiff": 2.5}
    facts = [facts_of(bits, seed) for seed in range(3)]
    facts[1]["ways"]["npo"]["retain"] = None
    found = judged(claims_on_text(facts))
    assert found == [True, True, False, "undecided", True, True, True]
    assert math.isnan(of_way(facts, "npo", "retain")[1])


def test_a_configuration_is_kept_as_it_is() -> None:
    config = Config(data=(Path("a"), Path("b")), rates=(1e-3,))
    kept = decode(Config, encode(config), "config")
    assert encode(kept) == encode(config) and list(kept.data) == list(config.data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"windows": 0}, "windows=0"),
        ({"dim": 6}, "dim=6"),
        ({"rates": ()}, "rates="),
        ({"rates": (0.0,)}, "rates="),
        ({"data": (Path("a"),)}, "data names 1 texts"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    paths = text_files(tmp_path)
    options = [
        "--seeds",
        "2",
        "--text-seeds",
        "2",
        "--domain-training",
        "60",
        "--domain-steps",
        "3",
    ]
    options += ["--text-training", "20", "--text-steps", "3", "--rates", "1e-3", "3e-3"]
    options += ["--dim", "16", "--layers", "2", "--context", "32", "--windows", "4"]
    options += ["--data", *map(str, paths)]
    outcome = outcome_of(tmp_path / "run", "run uoe", *options)
    assert first_column(outcome, 0) == ["before", *ways_of_domains(1)]
    assert first_column(outcome, 2) == list(ways_of_text(1, 0.0))
    assert outcome["tables"][2]["title"] == "sums.txt forgotten, words.txt retained"
    assert len(outcome["claims"]) == 17 and len(outcome["figures"]) == 2
