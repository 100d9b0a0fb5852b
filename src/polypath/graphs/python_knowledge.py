"""A knowledge graph that is on every machine: what the standard library's source says of itself.

Entities are modules, classes, functions, methods and built-in exceptions, by their full names.
Relations are what the syntax tree tells: a module imports a module, a module or a class defines
what is in it, a class inherits from a class, a function calls a function or a class and raises an
exception, a function or a class decorates.
"""

from __future__ import annotations

import ast
import builtins
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from polypath.errors import unknown
from polypath.graphs.knowledge_splits import KnowledgeSplit, split_entities
from polypath.graphs.triples import KnowledgeGraph

RELATIONS = ("imports", "defines", "inherits", "calls", "raises", "decorates")
TRAINED = ("asyncio", "email", "http", "json", "logging", "unittest", "urllib", "xml")
TESTED = ("concurrent", "importlib", "multiprocessing", "wsgiref", "xmlrpc")
SKIPPED = {"test", "tests", "site-packages", "idlelib"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_knowledge(packages: Sequence[str] = TRAINED + TESTED) -> KnowledgeGraph:
    """What the running Python's packages say of themselves; the same on the same Python.

    packages: top-level packages or modules of the standard library. What is in none of them, but
    for built-in exceptions, is not an entity.
    Raises InputError for a package that is not there.
    """
    root = Path(sysconfig.get_path("stdlib"))
    known = {path.stem for path in root.glob("*.py")} | {p.parent.name for p in root.glob("*/*.py")}
    for package in packages:
        if package not in known:
            raise unknown("package", package, known - SKIPPED)
    source = _Source({name: _Module(name, path) for name, path in _files(root, packages)})
    facts = dict.fromkeys(source.facts())
    names = sorted({end for head, _, tail in facts for end in (head, tail)})
    ids = {name: place for place, name in enumerate(names)}
    numbers = [(ids[head], RELATIONS.index(kind), ids[tail]) for head, kind, tail in facts]
    return KnowledgeGraph(torch.tensor(sorted(numbers)).reshape(-1, 3), names, RELATIONS)


def split_packages(
    graph: KnowledgeGraph,
    generator: torch.Generator,
    tested: Sequence[str] = TESTED,
    share: float = 0.1,
) -> KnowledgeSplit:
    """Test on some top-level packages of such a graph, train on all else; see `split_entities`."""
    trained = [name.split(".")[0] not in tested for name in graph.entities]
    return split_entities(graph, trained, generator, share)


def _files(root: Path, packages: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Modules by name, with their files."""
    for package in packages:
        single = root / f"{package}.py"
        for path in [single] if single.exists() else sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not SKIPPED & set(parts):
                yield ".".join(parts).removesuffix(".__init__"), path


@dataclass
class _Module:
    """A module's syntax, what it defines, and what its names mean."""

    name: str
    path: Path
    tree: ast.Module = field(init=False)
    scope: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that newer Pythons do not like
            self.tree = ast.parse(self.path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    self.scope[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.scope[alias.asname or alias.name] = f"{self.base(node)}.{alias.name}"
        for node in self.tree.body:
            if isinstance(node, Definition):
                self.scope[node.name] = f"{self.name}.{node.name}"
        self.define(self.name, self.tree)

    def define(self, name: str, node: ast.AST) -> None:
        """Functions and classes of a module or a class, and of classes in it."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Definition):
                self.definitions[f"{name}.{child.name}"] = child
                if isinstance(child, ast.ClassDef):
                    self.define(f"{name}.{child.name}", child)

    def base(self, node: ast.ImportFrom) -> str:
        """The module from which names are imported, as an absolute name."""
        if not node.level:
            return node.module or ""
        package = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
        parts = package.split(".")[: len(package.split(".")) - node.level + 1]
        return ".".join([*parts, *([node.module] if node.module else [])])


@dataclass
class _Source:
    """All modules by name, and the base classes of classes."""

    modules: dict[str, _Module]
    bases: dict[str, list[str]] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for module in self.modules.values():
            self.definitions |= module.definitions
        for module in self.modules.values():
            for name, node in module.definitions.items():
                if isinstance(node, ast.ClassDef):
                    found = [self.meaning(module, base) for base in node.bases]
                    self.bases[name] = [base for base in found if base]

    def facts(self) -> Iterator[tuple[str, str, str]]:
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                for name in self.imported(module, node):
                    if name != module.name:
                        yield module.name, "imports", name
            for name, node in module.definitions.items():
                owner = name.rpartition(".")[0]
                yield owner, "defines", name
                for decorator in node.decorator_list:
                    called = decorator.func if isinstance(decorator, ast.Call) else decorator
                    if found := self.meaning(module, called):
                        yield found, "decorates", name
                if isinstance(node, ast.ClassDef):
                    for base in self.bases[name]:
                        yield name, "inherits", base
                else:
                    yield from self.within(module, name, node, owner)

    def within(
        self, module: _Module, name: str, function: ast.AST, owner: str
    ) -> Iterator[tuple[str, str, str]]:
        """What a function calls and raises."""
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                if found := self.meaning(module, raised):
                    yield name, "raises", found
            elif isinstance(node, ast.Call):
                found = self.meaning(module, node.func, owner)
                if found in self.definitions:
                    yield name, "calls", found

    def imported(self, module: _Module, node: ast.AST) -> Iterator[str]:
        """The modules among those here that an import names."""
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.base(node)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in self.modules else base for name in names]
        yield from (name for name in names if name in self.modules)

    def meaning(self, module: _Module, node: ast.AST, owner: str = "") -> str | None:
        """The full name of what an expression like a.b.c stands for, where that is known."""
        if isinstance(node, ast.Name):
            found = getattr(builtins, node.id, None)
            if isinstance(found, type) and issubclass(found, BaseException):
                return f"builtins.{node.id}"
            return self.followed(module.scope.get(node.id, ""))
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            return self.member(owner, node.attr)
        above = self.meaning(module, node.value, owner)
        return self.followed(f"{above}.{node.attr}") if above else None

    def followed(self, name: str, steps: int = 5) -> str | None:
        """An entity of a name; names that a module has imported itself are followed."""
        if name in self.definitions or name in self.modules:
            return name
        owner, _, last = name.rpartition(".")
        if steps and owner in self.modules and last in self.modules[owner].scope:
            return self.followed(self.modules[owner].scope[last], steps - 1)
        return None

    def member(self, owner: str, name: str, depth: int = 8) -> str | None:
        """A method of a class, or of the classes that it inherits from."""
        if f"{owner}.{name}" in self.definitions:
            return f"{owner}.{name}"
        above = (self.member(base, name, depth - 1) for base in self.bases.get(owner, []) if depth)
        return next((found for found in above if found), None)
