"""Small experiments: what they leave, that nothing is done twice, and ranks beside each other."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from polypath.recipes.trials import Facts, trials
from polypath.training.parts import Reporter


def work(log: Path, fault: bool, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    with log.open("a") as file:
        file.write(f"{seed}\n")
    if fault:
        raise RuntimeError("no such thing")
    reporter.advance(0.5, 1.0)
    return {"seed": seed, "values": [1, None, 0.5]}, f"seed {seed}"


def test_facts_are_kept_and_not_made_again(tmp_path: Path) -> None:
    log, arms = tmp_path / "log", {"a": partial(work, tmp_path / "log", False)}
    found = trials(arms, 2, 1, tmp_path / "facts", workers=1)
    assert found == {"a": [{"seed": s, "values": [1, None, 0.5]} for s in (0, 1)]}
    assert trials(arms, 3, 1, tmp_path / "facts", workers=1)["a"][:2] == found["a"]
    assert log.read_text() == "0\n1\n2\n"


def test_a_trial_that_fails_leaves_no_facts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        trials({"a": partial(work, tmp_path / "log", True)}, 1, 1, tmp_path / "facts", workers=1)
    assert not list((tmp_path / "facts").iterdir())


@pytest.mark.slow
def test_ranks_wait_for_the_one_that_works(tmp_path: Path) -> None:
    """Its layers balance over ranks, of which the others take no part."""
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = [sys.executable, *ranks, "-m", "polypath", "run", "moe-survey"]
    asked += ["--seeds", "1", "--steps", "5", "--out", str(tmp_path / "run")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "outcome.json").exists()
