"""The recipes by name, found without importing them: names, domains and one line each."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from polypath.errors import unknown

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One recipe: its name on the command line, its domain and what it does in one line."""

    name: str
    domain: str
    line: str
    module: str

    def load(self) -> ModuleType:
        """The recipe's module, with Config, PRESETS and run; imports what the recipe needs."""
        return importlib.import_module(self.module)


def catalogue() -> dict[str, Entry]:
    """The files of this folder that set DOMAIN; their docstrings' first lines tell what they do."""
    entries = {}
    for path in sorted(HERE.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        domain = _constant(tree, "DOMAIN")
        if domain is not None:
            name = path.stem.replace("_", "-")
            line = (ast.get_docstring(tree) or "").split("\n")[0]
            entries[name] = Entry(name, domain, line, f"polypath.recipes.{path.stem}")
    return entries


def find(name: str) -> Entry:
    """The recipe called `name`; raises InputError with the nearest name when there is none."""
    entries = catalogue()
    if name not in entries:
        raise unknown("recipe", name, entries)
    return entries[name]


def _constant(tree: ast.Module, name: str) -> str | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            return ast.literal_eval(node.value)
    return None
