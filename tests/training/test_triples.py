"""Training on facts: losses, leaks, ranks; and two ranks against one process."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.graphs.knowledge_splits import KnowledgeSplit, split_facts
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.triples import KnowledgeGraph, Known, Removal, as_queries, with_inverses
from polypath.training import distribution
from polypath.training.interrupt import Interrupted
from polypath.training.triples import (
    Batch,
    TripleTraining,
    batches,
    fit_triples,
    rank_tails,
    seen,
    self_adversarial_loss,
    step,
)
from torchruns import as_rank, torchrun

STEPS = 4


def family(seed: int = 0) -> KnowledgeSplit:
    """Nodes in a ring with short cuts: "next", and "after next", which two steps tell."""
    count = 24
    ids = torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = torch.stack([order, torch.zeros_like(ids), order.roll(-1)], 1)
    second = torch.stack([order, torch.ones_like(ids), order.roll(-2)], 1)
    names = [f"n{n}" for n in range(count)], ["next", "after next"]
    graph = KnowledgeGraph(first, *names)
    part = second.split([12, 6, 6])
    return KnowledgeSplit(graph, part[1], graph, part[2], second[:0], part[0])


def random_split(seed: int = 0) -> KnowledgeSplit:
    graph = nx.gnm_random_graph(40, 160, seed=seed, directed=True)
    pairs = torch.tensor(list(graph.edges))
    kinds = torch.arange(len(pairs)) % 3
    facts = torch.stack([pairs[:, 0], kinds, pairs[:, 1]], 1)
    made = KnowledgeGraph(facts, [f"n{n}" for n in range(40)], ["a", "b", "c"])
    return split_facts(made, torch.Generator().manual_seed(seed), 0.15, 0.15)


def model_of(split: KnowledgeSplit, seed: int = 0, layers: int = 3, **kind: Any) -> NBFNet:
    torch.manual_seed(seed)
    return NBFNet(NBFNetConfig(split.train.num_types, 8, layers, **kind))


def test_self_adversarial_arithmetic() -> None:
    scores = torch.tensor([[1.5, 2, 0, -1]], dtype=torch.float64, requires_grad=True)
    loss = self_adversarial_loss(scores, 0.5)
    assert loss.item() == pytest.approx(1.149106, abs=5e-7)
    weights = torch.tensor([0.97963, 0.01794, 0.00243])
    (slope,) = torch.autograd.grad(loss.sum(), scores)
    # No gradient flows through the weights: each slope is its weight times a sigmoid, halved.
    wanted = weights * scores[0, 1:].sigmoid().detach() / 2
    torch.testing.assert_close(slope[0, 1:], wanted.double(), rtol=1e-3, atol=5e-6)
    assert slope[0, 0] == pytest.approx((1 / (1 + math.exp(-1.5)) - 1) / 2)
    even = self_adversarial_loss(scores, None).item()
    parts = [math.log1p(math.exp(-1.5)), *(math.log1p(math.exp(s)) for s in (2, 0, -1))]
    assert even == pytest.approx((parts[0] + sum(parts[1:]) / 3) / 2)


def test_batches_ask_for_tails_then_heads_with_strict_negatives() -> None:
    split = random_split()
    known = Known(split.train, split.train.facts)
    training = TripleTraining(batch=16, negatives=5)
    every = {tuple(fact) for fact in with_inverses(split.train.facts, 3).tolist()}
    asked = []
    for batch in batches(split, known, training, torch.Generator().manual_seed(0)):
        half = len(batch.heads) // 2
        assert (batch.relations[:half] < 3).all() and (batch.relations[half:] >= 3).all()
        for head, kind, row in zip(batch.heads, batch.relations, batch.tails, strict=True):
            facts = [(int(head), int(kind), int(tail)) in every for tail in row]
            assert facts == [True, *[False] * 5]
            tail = int(row[0])
            asked.append((int(head), int(kind), tail) if kind < 3 else (tail, kind - 3, int(head)))
    assert sorted(map(tuple, torch.tensor(asked).tolist())) == sorted(
        map(tuple, split.train.facts.tolist())
    )
    few = batches(split, known, replace(training, steps=2), torch.Generator().manual_seed(0))
    assert len(list(few)) == 2


@pytest.mark.parametrize("removal", ["pairs", "facts"])
def test_no_edge_of_a_batch_is_left(removal: Any) -> None:
    split = random_split()
    known, taken = Known(split.train, split.train.facts), Removal(split.train.edges())
    training = TripleTraining(batch=16, negatives=5, removal=removal)
    for batch in batches(split, known, training, torch.Generator().manual_seed(0)):
        edges = seen(taken, batch, training)
        left = {
            *zip(edges.sources.tolist(), edges.types.tolist(), edges.targets.tolist(), strict=True)
        }
        pairs = {(h, t) for h, _, t in left}
        for head, kind, row in zip(
            batch.heads.tolist(), batch.relations.tolist(), batch.tails.tolist(), strict=True
        ):
            for tail in row:
                if removal == "pairs":
                    assert (head, tail) not in pairs and (tail, head) not in pairs
                assert (head, kind, tail) not in left
                assert (tail, (kind + 3) % 6, head) not in left


class Table(nn.Module):
    """Scores that are given, by (head, relation)."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, edges: Any, heads: Tensor, relations: Tensor) -> Tensor:
        return self.scores[heads, relations]


def test_ranks_are_counted_among_what_is_not_known() -> None:
    split = random_split()
    graph, known = split.train, split.known()[1]
    scores = torch.randint(4, (40, 6, 40)).float()
    found = rank_tails(Table(scores), graph, split.test, known, batch=7)
    facts = torch.cat([split.train.facts, split.valid, split.test])
    every = {tuple(fact) for fact in with_inverses(facts, 3).tolist()}
    for place, (head, kind, tail) in enumerate(with_inverses(split.test, 3).tolist()):
        rivals = [t for t in range(40) if (head, kind, t) not in every]
        above = sum(scores[head, kind, t] >= scores[head, kind, tail] for t in rivals)
        assert found.ranks[place] == 1 + above and found.rivals[place] == len(rivals)
    told = found.facts()
    assert told["mrr"] == pytest.approx(float((1 / found.ranks).mean()))
    assert told["hits@3"] == pytest.approx(float((found.ranks <= 3).double().mean()))


def test_heads_are_tails_of_the_inverse_relation_bit_for_bit() -> None:
    split = random_split()
    model, edges = model_of(split), split.train.edges()
    heads = torch.randint(40, (len(split.test), 7))
    rows = split.test[:, None].repeat(1, 7, 1)
    rows[:, :, 0] = heads
    found = model(edges, *as_queries(rows, 3))
    wanted = model(edges, split.test[:, 2], split.test[:, 1] + 3, heads)
    assert torch.equal(found, wanted) and found.std() > 0.01


def test_a_rule_of_two_steps_is_learnt_and_the_best_state_kept() -> None:
    split, told = family(), []

    class Reporter:
        def skip(self, steps: int) -> None: ...

        def advance(self, loss: float, tokens_per_second: float) -> None:
            told.append(loss)

        def stop(self) -> bool:
            return False

    model = model_of(split, layers=2, dependent=False)
    training = TripleTraining(epochs=30, batch=12, negatives=8, rate=2e-2, removal="none", looks=10)
    fit = fit_triples(model, split, training, 0, Reporter())
    assert told == fit.losses and len(fit.valids) == 10 and fit.valid == max(fit.valids)
    assert fit.epoch == 3 * (fit.valids.index(fit.valid) + 1)
    known = split.known()
    assert rank_tails(model, split.train, split.valid, known[0]).mrr == fit.valid
    assert rank_tails(model, split.train, split.test, known[1]).mrr == 1
    # One step cannot tell who is two steps away.
    short = model_of(split, layers=1, dependent=False)
    fit_triples(short, split, training, 0)
    assert rank_tails(short, split.train, split.test, known[1]).mrr < 0.5


def test_a_leak_makes_the_loss_collapse_and_validation_worse() -> None:
    """In random graphs nothing can be learnt but the answer, where it is left in the graph."""
    split, fits = random_split(), {}
    for removal in ("none", "pairs"):
        training = TripleTraining(epochs=12, batch=16, negatives=8, removal=removal, looks=1)
        fits[removal] = fit_triples(model_of(split), split, training, 0)
    assert fits["none"].losses[-1] < 0.3 * fits["pairs"].losses[-1]
    assert fits["none"].valid < fits["pairs"].valid


def test_the_same_seed_is_the_same_model() -> None:
    split, states = random_split(), []
    for _ in range(2):
        model = model_of(split)
        fit_triples(model, split, TripleTraining(epochs=2, batch=32, negatives=4), 3)
        states.append(model.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_training_stops_when_asked_and_tells_bad_losses() -> None:
    class Reporter:
        def skip(self, steps: int) -> None: ...

        def advance(self, loss: float, tokens_per_second: float) -> None: ...

        def stop(self) -> bool:
            return True

    split = random_split()
    with pytest.raises(Interrupted):
        fit_triples(model_of(split), split, TripleTraining(epochs=3), 0, Reporter())
    broken = model_of(split)
    nn.init.constant_(broken.mlp[2].bias, math.nan)
    with pytest.raises(InputError, match="the loss is nan in epoch 1"):
        fit_triples(broken, split, TripleTraining(epochs=1), 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"steps": 0}, "steps=0"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TripleTraining(**values)


def spread() -> list[float]:
    """Losses of some steps of a model that lies spread over ranks, and a validation."""
    split = random_split()
    model = distribution.parallelise(model_of(split, distribution.rank()).double())
    known, removal = Known(split.train, split.train.facts), Removal(split.train.edges())
    optimiser = torch.optim.Adam(model.parameters(), 1e-2, eps=1e-5)
    training = TripleTraining(batch=15, negatives=4)
    drawn = batches(split, known, training, torch.Generator().manual_seed(0))
    losses = [step(model, optimiser, next(drawn), removal, training) for _ in range(STEPS)]
    ranking = rank_tails(model, split.train, split.valid, split.known()[0])
    return [*losses, ranking.mrr]


def whole() -> list[float]:
    """Losses and validations of training that leaves a model whole on every rank."""
    split = random_split()
    model = model_of(split, distribution.rank()).double()
    fit = fit_triples(model, split, TripleTraining(2, batch=15, negatives=4, looks=2), 0)
    return [*fit.losses, *fit.valids, *model.mlp[2].weight[0].tolist()]


def work(folder: Path) -> None:
    found = {"spread": spread(), "whole": whole()}
    (folder / f"rank {distribution.rank()}").write_text(json.dumps(found))


def test_two_ranks_train_as_one_process(tmp_path: Path) -> None:
    torchrun(__file__, tmp_path)
    wanted = {"spread": spread(), "whole": whole()}
    assert len(set(wanted["spread"][:-1])) == STEPS
    for rank in range(2):
        found = json.loads((tmp_path / f"rank {rank}").read_text())
        for how, values in wanted.items():
            assert found[how] == pytest.approx(values, rel=1e-9), how


def test_a_batch_is_shared_without_rest() -> None:
    batch = Batch(torch.arange(5), torch.arange(5), torch.arange(10).view(5, 2))
    parts = [batch.part(n, 2) for n in range(2)]
    assert torch.equal(torch.cat([part.tails for part in parts]), batch.tails)


if __name__ == "__main__":
    as_rank(work)
