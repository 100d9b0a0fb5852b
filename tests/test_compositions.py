"""Every router × every kind of experts × every loss trains, records, saves and loads, or says why
not in one line; and the page that tells users so is what comes out."""

from dataclasses import replace

import pytest
import torch

from compositions import PAGE, combinations, described, host, page, text, train, tried
from polypath.experts.activations import ACTIVATIONS
from polypath.language import attach
from polypath.language.options import READS
from polypath.routing import record


@pytest.mark.parametrize("router", READS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_combination_works_or_says_why_not(router: str, kind: str) -> None:
    written = PAGE.read_text(encoding="utf-8")
    for combination in combinations():
        if combination[:2] == (router, kind):
            reason = tried(*combination)
            assert reason is None or f". {reason}\n" in written, "python tests/compositions.py"


@pytest.mark.parametrize("router", READS)
def test_one_expert_serves_everything(router: str) -> None:
    one = replace(
        described(router, "swiglu", None), num_experts=1, k=1 if "k" in READS[router] else 2
    )
    model = attach(host(), one)
    train(model, None)
    with torch.no_grad(), record(model.eval()) as routes:
        assert model(text(9)[:, :-1]).logits.isfinite().all()
    for routing in routes.joined().values():
        assert bool((routing.load() == len(routing)).all() | (routing.num_experts > 1))


@pytest.mark.slow
def test_the_page_is_what_comes_out() -> None:
    assert PAGE.read_text(encoding="utf-8") == page({c: tried(*c) for c in combinations()})
