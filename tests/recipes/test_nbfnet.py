"""NBFNet's recipe: which graphs, which claims, and a run that is as small as it goes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from polypath.errors import InputError
from polypath.graphs.triple_files import write_triples
from polypath.graphs.triples import KnowledgeGraph
from polypath.plain import decode, encode
from polypath.recipes.nbfnet import Config, arms, figures, prepare, table, walks
from polypath.recipes.nbfnet_claims import (
    ABLATED,
    CORA,
    DEEP,
    EMBEDDED,
    FREEBASE,
    KINSHIP,
    LEARNT,
    PYTHON,
    SHALLOW,
    USUAL,
    WORDNET,
    claims_on,
)
from polypath.report.figures import Walk
from polypath.report.outcome import Held
from recipe_runs import first_column, outcome_of


def measured(mrr: float, hits: float = 0.9) -> dict[str, Any]:
    told = {"mrr": mrr, "hits@1": mrr, "hits@10": mrr, "hits@10 of 50": hits}
    return {"test": told, "valid": told, "sizes": {"relations": 2}}


def by_arm(**values: float) -> dict[str, list[dict[str, Any]]]:
    """Three seeds of each arm, near a value."""
    return {
        name: [measured(value + 0.001 * seed, value + 0.001 * seed) for seed in range(3)]
        for name, value in values.items()
    }


def held(claims: Any) -> list[Held]:
    return [claim.held for claim in claims]


def test_claims_on_new_entities() -> None:
    facts = by_arm(**{LEARNT: 0.4, USUAL: 0.1, "sum": 0.45, "mean": 0.3})
    facts["mean"][1]["test"]["mrr"] = 0.9
    assert held(claims_on(PYTHON, facts)) == [True, False, "undecided"]
    facts = by_arm(**{LEARNT: 0.825, USUAL: 0.1})
    assert held(claims_on(FREEBASE, facts)) == [True, True, True, True]
    assert held(claims_on(WORDNET, facts)) == [True, False, False, "undecided"]
    own = claims_on("mine.tsv", by_arm(**{LEARNT: 0.4, USUAL: 0.1, "sum": 0.4, "mean": 0.4}))
    assert own[0].claim.startswith("mine.tsv: paths rank better")


def test_claims_on_kinship() -> None:
    facts = by_arm(**{DEEP: 0.99, SHALLOW: 0.1, "TransE": 0.1, "DistMult": 0.7})
    for seed, one in enumerate(facts[DEEP]):
        one["rule"] = 0.95 + 0.01 * seed
    assert held(claims_on(KINSHIP, facts)) == [True, True, False, True]


def test_claims_on_citations() -> None:
    facts = {
        arm: [{"auroc": value + 0.001 * seed, "ap": value} for seed in range(3)]
        for arm, value in (("NBFNet", 0.94), ("Katz", 0.81))
    }
    assert held(claims_on(CORA, facts)) == [False, True, True]
    assert [row[0] for row in table(CORA, facts).rows] == ["NBFNet", "Katz"]


def test_tables_and_figures_show_what_was_measured() -> None:
    facts = by_arm(**{LEARNT: 0.4, USUAL: 0.1})
    for seed, one in enumerate(facts[LEARNT]):
        one |= {"valids": [0.1, 0.2 + seed], "losses": [1.0, 0.5]}
        walk = {"edges": [["a", "knows", "b"], ["b", "likes⁻¹", "c"]], "importance": 0.5}
        one["walks"] = {"fact": "a near c", "rank": 1.0, "walks": [walk]}
    shown = table(PYTHON, facts)
    assert shown.rows[0][1] == pytest.approx(0.401) and shown.note.startswith("2 relations")
    (curves,) = figures({PYTHON: facts})
    assert [line.name for line in curves.series] == [LEARNT]
    assert curves.series[0].mean == pytest.approx([0.1, 1.2])
    (told,) = walks({PYTHON: facts})
    assert told.paths == [Walk(["a", "b", "c"], ["knows", "likes⁻¹"], 0.5)]
    assert PYTHON in told.title and told.note.startswith("a near c: rank 1.")
    assert walks({KINSHIP: by_arm(**{DEEP: 1.0})}) == []


def test_graphs_are_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYPATH_DATA", raising=False)
    quick = Config(graphs=(KINSHIP,))
    assert list(prepare(quick, tmp_path)) == [KINSHIP]
    (tmp_path / "inductive-kg" / WORDNET).mkdir(parents=True)
    (tmp_path / "python.tsv").touch()
    found = prepare(Config(data_dir=tmp_path), tmp_path)
    assert list(found) == [KINSHIP, PYTHON, WORDNET]
    with pytest.raises(InputError, match="fb237_v1: no such data in"):
        prepare(Config(graphs=(FREEBASE,), data_dir=tmp_path), tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        prepare(Config(data=tmp_path / "nothing"), tmp_path)


def test_arms_are_the_specifications() -> None:
    config = Config(epochs=2, steps=7, batch=5)
    assert list(arms(config, KINSHIP, Path(), Path("models"))) == [DEEP, SHALLOW, *EMBEDDED]
    assert list(arms(config, PYTHON, Path(), Path("models"))) == [LEARNT, USUAL, *ABLATED]
    own: Any = arms(config, WORDNET, Path("x"), Path("models"))[LEARNT]
    assert (own.args[0].epochs, own.args[0].steps, own.args[0].batch) == (4, None, 5)
    assert list(arms(config, CORA, Path(), Path("models"))) == ["NBFNet", "Katz"]


def test_a_configuration_is_kept_as_it_is() -> None:
    config = Config(graphs=(PYTHON,), data_dir=Path("x"))
    assert encode(decode(Config, encode(config), "config")) == encode(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"kinship_epochs": 0}, "kinship_epochs=0"),
        ({"graphs": ("pyton",)}, "unknown graph 'pyton'; did you mean 'python'"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    ids = torch.arange(40)
    facts = torch.cat(
        [torch.stack([ids, torch.full_like(ids, n), ids.roll(-n - 1)], 1) for n in range(2)]
    )
    names = [f"n{n}" for n in ids.tolist()]
    write_triples(tmp_path / "ring.tsv", KnowledgeGraph(facts, names, ["next", "second"]))
    options = ["--seeds", "2", "--epochs", "2", "--steps", "3"]
    outcome = outcome_of(
        tmp_path / "run", "run nbfnet", *options, "--data", str(tmp_path / "ring.tsv")
    )
    assert first_column(outcome, 0) == [LEARNT, USUAL, *ABLATED]
    assert len(outcome["claims"]) == 3
    assert [figure["kind"] for figure in outcome["figures"]] == ["curves", "paths"]
    options = ["--seeds", "2", "--graphs", KINSHIP, "--kinship-epochs", "3"]
    outcome = outcome_of(tmp_path / "other", "run nbfnet", *options)
    assert first_column(outcome, 0) == [DEEP, SHALLOW, *EMBEDDED]
