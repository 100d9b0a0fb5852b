import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polypath.recipes.rmoe import Config, arms
from polypath.recipes.text import build

TINY = ["--steps", "8", "--evaluate-every", "4", "--seeds", "2", "--dim", "16", "--layers", "2"]
TINY += ["--limit-mb", "0.3", "--validation-windows", "8", "--context", "64", "--tokenizer", "byte"]


def test_controls_without_recurrence_have_as_many_parameters() -> None:
    config = Config()
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build(config, arm, 256).parameters())
            for name, arm in arms(config).items()
        }
    assert sizes["rmoe"] == sizes["not-passed"] == sizes["detached"] == sizes["residual"]
    assert sizes["shared-projection"] == sizes["rmoe"] - 5 * 32 * 64
    assert sizes["rmoe"] < sizes["smoe-mlp"] * 1.01


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "polypath", "run", "rmoe", *TINY, "--out", tmp_path / "run"]
    done = subprocess.run([*map(str, asked)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert [row[0] for row in outcome["tables"][0]["rows"]] == list(arms(Config()))
    assert len(outcome["claims"]) == 8
    means = {row[0]: row[3] for row in outcome["tables"][0]["rows"]}
    assert outcome["claims"][0]["measured"] == pytest.approx(means["rmoe"] - means["smoe"])
    shared = {row[0]: row[1:4] for row in outcome["tables"][1]["rows"]}
    for found, chance, corrected in shared.values():
        assert corrected == pytest.approx(found - chance, abs=1e-9)
