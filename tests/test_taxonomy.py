"""The page of the taxonomy says what is so: every name can be imported, every test is there."""

import ast
from importlib import import_module

from taxonomy import PAGE, ROOT, page, sections

# How many items each section of the survey's table has.
SIZES = {"A": 49, "B": 20, "C": 17, "D": 22, "E": 14, "F": 12, "G": 8, "H": 6}
ITEMS = [item for section in sections() for item in section["items"]]


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/taxonomy.py"


def test_every_item_of_the_survey_is_there_once() -> None:
    wanted = [f"{letter}{n}" for letter, size in SIZES.items() for n in range(1, size + 1)]
    assert [item["id"] for item in ITEMS] == wanted


def test_every_item_is_provided_and_tested_or_says_why_not() -> None:
    for item in ITEMS:
        assert bool(item.get("here")) == bool(item.get("test")), item["id"]
        assert item.get("here") or item.get("missing"), item["id"]


def test_what_is_named_can_be_imported() -> None:
    for item in ITEMS:
        for name in item.get("here", []):
            module, _, attribute = name.rpartition(".")
            assert hasattr(import_module(module), attribute), f"{item['id']}: {name}"


def test_the_named_tests_are_there() -> None:
    known: dict[str, set[str]] = {}
    for item in ITEMS:
        if test := item.get("test"):
            file, _, name = test.partition("::")
            if file not in known:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                found = (n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
                known[file] = set(found)
            assert name in known[file], f"{item['id']}: {test}"
