"""Recipes from the command line, as small as they go, and what they leave."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Sizes of a recipe on text that is to be done in seconds.
TINY = ["--steps", "8", "--evaluate-every", "4", "--seeds", "2", "--dim", "16", "--layers", "2"]
TINY += ["--limit-mb", "0.3", "--validation-windows", "8", "--context", "64", "--tokenizer", "byte"]


def outcome_of(folder: Path, command: str, *arguments: str) -> dict[str, Any]:
    """What `polypath COMMAND ARGUMENTS` writes as its outcome into `folder`; it has to end well."""
    asked = [sys.executable, "-m", "polypath", *command.split(), *arguments, "--out", str(folder)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists()
    return json.loads((folder / "outcome.json").read_text())


def first_column(outcome: dict[str, Any], table: int) -> list[str]:
    """The names of a table's rows."""
    return [row[0] for row in outcome["tables"][table]["rows"]]
