from pathlib import Path

import pytest

from polypath.recipes.show import print_table
from polypath.report import results_table

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_results_is_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(results_table(ROOT / "results"), markdown=True)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in page, "polypath table results --markdown"
