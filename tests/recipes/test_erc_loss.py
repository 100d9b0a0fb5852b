import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.erc_loss import Config, arms, students
from polypath.recipes.text import build

TINY = ["--steps", "8", "--evaluate-every", "4", "--seeds", "2", "--dim", "16", "--layers", "2"]
TINY += ["--limit-mb", "0.3", "--validation-windows", "8", "--context", "64", "--tokenizer", "byte"]
TINY += ["--specialist-steps", "60", "--specialist-seeds", "2"]


def test_a_loss_adds_no_parameter() -> None:
    config = Config()
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build(config, arm, 256).parameters())
            for name, arm in arms(config).items()
        }
    rows = config.dim * config.experts * config.layers
    # dim = hidden: two factors of half the rank are one matrix; and there is no router.
    assert sizes.pop("autonomous") == sizes["smoe"] - rows
    assert len(set(sizes.values())) == 1


def test_students_are_tied_as_the_models_are() -> None:
    known = students(Config())
    assert set(known) == {*arms(Config()), "unbalanced"}
    assert known["erc"].losses == {"load_balance": 0.01, "coupling": 1.0}
    assert known["unbalanced"].losses == {}


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="specialist_steps=0"):
        Config(specialist_steps=0)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "polypath", "run", "erc-loss", *TINY, "--out", tmp_path / "run"]
    done = subprocess.run([*map(str, asked)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert [row[0] for row in outcome["tables"][0]["rows"]] == list(arms(Config()))
    assert [row[0] for row in outcome["tables"][1]["rows"]] == list(students(Config()))
    assert [row[0] for row in outcome["tables"][2]["rows"]] == list(arms(Config()))[:-1]
    assert len(outcome["claims"]) == 15
    (drawn,) = [f for f in outcome["figures"] if f["title"] == "Coupling α* on specialists"]
    assert drawn["series"][0]["x"] == [50, 60]
