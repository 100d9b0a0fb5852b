"""Family trees: what a grandparent is, what embeddings score, and what each way learns."""

from typing import Any

import pytest
import torch

from polypath.graphs.passing import Incoming
from polypath.recipes.kinship import (
    GRANDPARENT,
    PARENT,
    SIBLING,
    SPOUSE,
    Embeddings,
    Kinship,
    family,
    kinship,
    on_kinship,
)


class Silent:
    """A reporter that nobody reads."""

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None: ...

    def stop(self) -> bool:
        return False


@pytest.mark.parametrize("seed", range(4))
def test_a_family_is_what_it_says(seed: int) -> None:
    graph, grand = family(seed, "x")
    again = family(seed, "x")
    assert torch.equal(again[0].facts, graph.facts) and torch.equal(again[1], grand)
    by = {kind: set() for kind in range(4)}
    for head, kind, tail in graph.facts.tolist():
        by[kind].add((head, tail))
    parents: dict[int, set[int]] = {}
    for child, parent in by[PARENT]:
        parents.setdefault(child, set()).add(parent)
    assert all(len(own) == 2 and tuple(own) in by[SPOUSE] for own in parents.values())
    assert {(b, a) for a, b in by[SPOUSE]} == by[SPOUSE]
    siblings = {(a, b) for a in parents for b in parents if a != b and parents[a] == parents[b]}
    assert by[SIBLING] == siblings
    # Who marries is of another couple, or new: no child of the same parents, nobody twice.
    assert not any(parents.get(a) and parents.get(a) == parents.get(b) for a, b in by[SPOUSE])
    assert len({a for a, _ in by[SPOUSE]}) == len(by[SPOUSE])
    steps = {(a, c) for a, b in by[PARENT] for b2, c in by[PARENT] if b == b2}
    assert {(h, t) for h, _, t in grand.tolist()} == steps and (grand[:, 1] == GRANDPARENT).all()
    assert len(steps) == len(grand) and not by[GRANDPARENT]


def test_trees_share_nobody_and_grandparents_are_no_messages() -> None:
    split = kinship(3)
    assert not set(split.train.entities) & set(split.inference.entities)
    assert (split.lessons[:, 1] == GRANDPARENT).all() and (split.test[:, 1] == GRANDPARENT).all()
    assert not (split.train.facts[:, 1] == GRANDPARENT).any()
    assert len(split.valid) == (len(split.valid) + len(split.lessons)) // 5


def test_embeddings_score_as_their_equations() -> None:
    edges = Incoming.of(torch.tensor([[0], [1]]), 5)
    heads, kinds = torch.tensor([0, 3]), torch.tensor([1, 0])
    for kind in ("TransE", "DistMult"):
        model = Embeddings([5, 7], 2, kind)
        found = model(edges, heads, kinds)
        h, r = model.entities["5"](heads), model.relations(kinds)
        for row in range(2):
            for tail, t in enumerate(model.entities["5"].weight):
                wanted = (
                    12 - (h[row] + r[row] - t).norm()
                    if kind == "TransE"
                    else (h[row] * r[row] * t).sum()
                )
                torch.testing.assert_close(found[row, tail], wanted)
        tails = torch.tensor([[4, 2], [0, 0]])
        torch.testing.assert_close(model(edges, heads, kinds, tails), found.gather(1, tails))


@pytest.mark.parametrize(
    ("task", "low", "high"),
    [
        (Kinship("NBFNet", 8, 3), 0.9, 1.0),
        (Kinship("NBFNet", 8, 1), 0.0, 0.3),
        (Kinship("TransE", 8), 0.0, 0.3),
        (Kinship("DistMult", 8), 0.0, 0.3),
    ],
)
def test_each_way_learns_what_it_can(task: Any, low: float, high: float) -> None:
    facts, line = on_kinship(task, 0, Silent())
    assert low <= facts["test"]["mrr"] <= high and "MRR" in line
    assert len(facts["losses"]) == 8 and facts["seconds"] > 0
    if task.layers > 1:
        assert facts["rule"] > 0.5 and max(facts["walks"], key=facts["walks"].get) == (
            "parent, parent"
        )
