from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.dense_hosts import Host
from polypath.recipes.factorllm import ARMS, Config, exact
from polypath.surgery.tuning import FactorLoss
from recipe_runs import first_column, outcome_of

SMALL = ["--seeds", "2", "--steps", "4", "--tuning", "2", "--dim", "16", "--hidden", "16"]
SMALL += ["--layers", "1", "--context", "32", "--windows", "4", "--limit-mb", "0.2"]


def test_arms_differ_in_what_teaches_the_routers_alone() -> None:
    assert ARMS["random routers"] == FactorLoss(route=0.0, balance=0.0)
    assert (ARMS["PA"].route, ARMS["PA"].balance) == (0.05, 0.01)
    assert ARMS["PA, subsets"].label == "subset"


def test_all_experts_are_the_dense_model() -> None:
    torch.manual_seed(0)
    model = Host(dim=16, layers=2, hidden=16, context=16).model().eval()
    assert exact(model, torch.randint(256, (3, 17))) < 1e-5


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="hidden=30"):
        Config(hidden=30)
    with pytest.raises(InputError, match="rate=2"):
        Config(rate=2)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path / "run", "run factorllm", *SMALL)
    names = first_column(outcome, 0)
    assert names[:2] == ["dense", "dense, tuned"] and len(names) == 2 + 2 * len(ARMS)
    work = {row[0]: row[-1] for row in outcome["tables"][0]["rows"]}
    assert (work["dense"], work["PA, k = 2"], work["PA, k = 1"]) == (1.0, 0.5, 0.25)
    assert outcome["claims"][0]["held"] is True and len(outcome["claims"]) == 12
