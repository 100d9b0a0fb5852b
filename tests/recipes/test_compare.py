from pathlib import Path

import pytest

from polypath.recipes.compare import Config, arms
from polypath.recipes.text import TextConfig
from recipe_runs import TINY, outcome_of


def test_systems_have_the_sizes_of_the_comparison() -> None:
    config = Config(systems=("moe-lm", "moe-lm/dense-total"), experts=4, k=1, hidden=32)
    routed, dense = arms(config).values()
    assert (routed.routed.num_experts, routed.routed.k, routed.routed.hidden) == (4, 1, 32)
    assert dense.routed is None and dense.width == 4 * 32
    assert isinstance(config, TextConfig)


@pytest.mark.slow
def test_a_comparison_shows_every_system(tmp_path: Path) -> None:
    names = ["moe-lm", "moe-lm/dense-active"]
    outcome = outcome_of(tmp_path / "run", "compare", *names, *TINY)
    bits, routed = outcome["tables"][:2]
    assert [row[0] for row in bits["rows"]] == names
    assert [row[0] for row in routed["rows"]] == ["moe-lm"]
    shown = dict(zip(routed["columns"], routed["rows"][0], strict=True))
    assert all(isinstance(value, str) for value in shown.values())
    assert shown["experts"].startswith("2 ")
    drawn = {figure["title"] for figure in outcome["figures"]}
    assert {"Fluctuation between validations", "Pathway distance"} <= drawn
    (claim,) = outcome["claims"]
    assert claim["baseline"] == "moe-lm"
    means = [row[3] for row in bits["rows"]]
    assert claim["measured"] == pytest.approx(means[1] - means[0])
