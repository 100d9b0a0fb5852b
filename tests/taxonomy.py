"""What the survey of mixtures of experts names, and what of it is here.

`python tests/taxonomy.py` writes docs/taxonomy.md from docs/taxonomy.yaml; a test holds the page
against it, and every name and test in it against the code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
TABLE, PAGE = ROOT / "docs" / "taxonomy.yaml", ROOT / "docs" / "taxonomy.md"

HEAD = """# Taxonomy

What "A Comprehensive Survey of Mixture-of-Experts" (arXiv 2503.07137) names, with the wider
literature that it stands on, and what of it is here. ✓ is provided by the named parts and held to
its formula by the named test; ◐ in part; – not at all. {has} ✓, {part} ◐, {none} –.
Written by `python tests/taxonomy.py` from `docs/taxonomy.yaml` and held by a test.
"""


def sections() -> list[dict[str, Any]]:
    """The table's sections, each with its items."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def mark(item: dict[str, Any]) -> str:
    if not item.get("here"):
        return "–"
    return "◐" if item.get("missing") else "✓"


def page() -> str:
    """The page as it should be."""
    items = [item for section in sections() for item in section["items"]]
    marks = [mark(item) for item in items]
    counts = {"has": marks.count("✓"), "part": marks.count("◐"), "none": marks.count("–")}
    lines = [HEAD.format(**counts)]
    for section in sections():
        lines += [f"## {section['title']}", ""]
        lines += ["| | what | source | | here, or why not | test |", "| --- " * 6 + "|"]
        lines += [row(item) for item in section["items"]]
        lines.append("")
    return "\n".join(lines)


def row(item: dict[str, Any]) -> str:
    here = ", ".join(f"`{name.removeprefix('polypath.')}`" for name in item.get("here", []))
    missing = item.get("missing")
    if here and missing:
        here += f"; without: {missing}"
    test = item.get("test", "").rpartition("::")[2].removeprefix("test_").replace("_", " ")
    cells = [item["id"], item["name"], item["source"], mark(item), here or missing, test]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
