"""Every router × every kind of experts × every loss trains, records, saves and loads, or says why
not in one line; and the page that tells users so is what comes out."""

import pytest

from compositions import PAGE, combinations, page, tried
from polypath.experts.activations import ACTIVATIONS
from polypath.language.options import READS


@pytest.mark.parametrize("router", READS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_combination_works_or_says_why_not(router: str, kind: str) -> None:
    written = PAGE.read_text(encoding="utf-8")
    for combination in combinations():
        if combination[:2] == (router, kind):
            reason = tried(*combination)
            assert reason is None or f". {reason}\n" in written, "python tests/compositions.py"


@pytest.mark.slow
def test_the_page_is_what_comes_out() -> None:
    assert PAGE.read_text(encoding="utf-8") == page({c: tried(*c) for c in combinations()})
