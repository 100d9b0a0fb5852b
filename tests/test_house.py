"""The rules of the house, kept over the whole tree."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
PACKAGE = SRC / "polypath"
PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FOLDERS = (".ci", "benchmarks", "docs", "results", "src", "tests")
TEXT = {"", ".css", ".html", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    package = path.relative_to(SRC).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else source for name in names)


def test_floors_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True, no_logo=True) == EXIT_STATUS_SUCCESS


def test_files_do_not_import_in_circles() -> None:
    graph = {name: set(imports(path)) & MODULES.keys() for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which holds the circle


def test_fronts_only_hand_names_on() -> None:
    top = PACKAGE / "__init__.py"

    def hands_on(node: ast.stmt, path: Path) -> bool:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                return True
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return True
            case (
                ast.FunctionDef(name="__getattr__")
                | ast.Assign(targets=[ast.Name("__version__")])
                | ast.If(test=ast.Name("TYPE_CHECKING"))
            ):
                return path == top
        return False

    fronts = [path for path in MODULES.values() if path.name == "__init__.py"]
    assert top in fronts
    others = [
        f"{module(path)}, line {node.lineno}"
        for path in fronts
        for node in tree(path).body
        if not hands_on(node, path)
    ]
    assert not others


def test_files_stay_under_400_lines() -> None:
    lengths = {name: path.read_text().count("\n") for name, path in MODULES.items()}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_nothing_is_pickled() -> None:
    picklers = {
        name for name, path in MODULES.items() for used in imports(path) if used in PICKLERS
    }
    calls = re.compile(r"\btorch\.(load|save)\(|\ballow_pickle\b")
    picklers |= {name for name, path in MODULES.items() if calls.search(path.read_text())}
    assert not picklers


def test_help_needs_no_engine() -> None:
    script = """
import sys
from polypath.cli import main
sys.argv = ["polypath", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
assert not {"torch", "transformers"} & sys.modules.keys()
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "polypath" in ran.stdout


def test_no_file_names_this_machine() -> None:
    here = "|".join(re.escape(str(folder)) for folder in (ROOT, ROOT.parent) if folder.name)
    machine = re.compile(rf"(?<![\w.])(?:{here}|/home/\w+|/Users/\w+|/root|/tmp)/")
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text(errors="replace") for path in paths if path.suffix in TEXT}
    assert not [str(path) for path, text in texts.items() if machine.search(text)]


def test_fresh_memory_is_nan() -> None:
    assert torch.empty(7).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()
