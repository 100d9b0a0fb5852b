"""The Python on the pages runs, and prints what the pages say."""

import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/guide.md",
    *(f"docs/parts/{path.name}" for path in sorted((ROOT / "docs/parts").glob("*.md"))),
]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[int, str, str | None]]:
    """Line, code and what it prints (a block of text right behind it) of each Python block."""
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block[1] != "python":
            continue
        printed = None
        if (
            after is not None
            and after[1] == "text"
            and not text[block.end() : after.start()].strip()
        ):
            printed = after[2]
        yield text.count("\n", 0, block.start(2)), block[2], printed


@pytest.mark.parametrize("name", PAGES)
def test_python_on_the_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    found = list(blocks(ROOT / name))
    assert found
    for line, code, printed in found:
        output = StringIO()
        with redirect_stdout(output):
            exec(compile("\n" * line + code, str(ROOT / name), "exec"), namespace)
        if printed is not None:
            assert output.getvalue() == printed, f"{name}, after line {line + 1}"
