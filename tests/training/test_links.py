import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from graphs_at_random import from_networkx
from polypath.errors import InputError
from polypath.graphs import Adjacency, LinkSplit, hits_at, split_links
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.ncn import NCN, NCNC, Calibration, NCNCConfig, NCNConfig
from polypath.graphs.predictors import link_scores
from polypath.training import distribution
from polypath.training.interrupt import Interrupted
from polypath.training.links import (
    LinkTask,
    LinkTraining,
    batches,
    evaluate,
    fit_links,
)
from torchruns import as_rank, torchrun


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clubs(seed: int = 0) -> LinkSplit:
    """Three communities, which embeddings of nodes can tell apart."""
    graph = nx.planted_partition_graph(3, 20, 0.6, 0.02, seed=1)
    return split_links(from_networkx(graph), generator(seed), valid=0.15, test=0.15)


class Embeddings(nn.Module):
    """Inner products of embeddings, and what it was given."""

    def __init__(self, nodes: int = 60) -> None:
        super().__init__()
        self.encoder = nn.Embedding(nodes, 8)
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.1)
        self.seen: list[tuple[Adjacency, Tensor]] = []

    def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        self.seen.append((graph, pairs))
        h = self.drop(self.encoder.weight)
        return self.scale * (h[pairs[0]] * h[pairs[1]]).sum(1)


def model(seed: int = 0) -> Embeddings:
    torch.manual_seed(seed)
    return Embeddings()


QUICK = LinkTraining(epochs=15, batch=32, encoder_rate=0.05, rate=0.01)


def test_embeddings_learn_communities_and_the_best_state_is_left() -> None:
    task = LinkTask(clubs(), hits=20)
    predictor = model()
    before = evaluate(predictor, task, None, task.split.graph, "test")
    fit = fit_links(predictor, task, QUICK, 0)
    assert not predictor.training
    assert fit.losses[-1] < fit.losses[0] and len(fit.valids) == len(fit.losses) == 15
    assert fit.valid == max(fit.valids) == fit.valids[fit.epoch - 1]
    assert fit.valid == evaluate(predictor, task, None, task.split.graph, "valid")
    assert fit.test == evaluate(predictor, task, None, task.split.graph, "test") > before + 0.2
    scores = link_scores(predictor, task.split.graph, None, task.split.test)
    others = link_scores(predictor, task.split.graph, None, task.split.test_negatives)
    assert fit.test == hits_at(scores, others, 20)


def test_test_pairs_are_scored_once() -> None:
    task, predictor = LinkTask(clubs(), hits=20), model()
    fit_links(predictor, task, QUICK, 0)
    asked = torch.cat([task.split.test, task.split.test_negatives], 1)
    assert sum(torch.equal(pairs, asked) for _, pairs in predictor.seen) == 1
    assert torch.equal(predictor.seen[-1][1], asked)


@pytest.mark.parametrize("removal", [True, False])
def test_a_batch_is_scored_on_a_graph_without_its_positives(removal: bool) -> None:
    split = clubs()
    predictor, size = model(), split.train.shape[1]
    fit_links(predictor, LinkTask(split, hits=20), replace(QUICK, epochs=2, removal=removal), 0)
    every = {frozenset(pair) for pair in split.train.T.tolist()}
    trained = [(graph, pairs) for graph, pairs in predictor.seen if pairs.shape[1] == 64]
    assert len(trained) == 2 * (size // 32)
    for graph, pairs in trained:
        own = {frozenset(pair) for pair in pairs[:, :32].T.tolist()}
        seen = {frozenset(pair) for pair in graph.edge_index.T.tolist()}
        assert len(own) == 32 and own < every
        assert seen == (every - own if removal else every)
        negatives = {frozenset(pair) for pair in pairs[:, 32:].T.tolist()}
        assert not negatives & every


def test_validation_edges_are_seen_at_the_test_alone_where_that_is_asked() -> None:
    split, predictor = clubs(), model()
    fit_links(predictor, LinkTask(split, hits=20, valid_edges=True), replace(QUICK, epochs=1), 0)
    *before, (graph, _) = predictor.seen
    assert graph.num_edges == split.train.shape[1] + split.valid.shape[1]
    assert graph.has(split.valid).all() and not graph.has(split.test).any()
    assert not any(graph.has(split.valid).any() for graph, _ in before)


def test_an_epoch_has_every_positive_once_and_full_batches() -> None:
    split = clubs()
    count = split.train.shape[1]
    for size in (7, 50, count, 10 * count):
        drawn = list(batches(split.train, split.graph, size, generator()))
        positives = torch.cat([own for own, _ in drawn], 1)
        assert positives.shape[1] == max(count // size * size, count if size > count else 0)
        assert len(positives.unique(dim=1).T) == positives.shape[1]
        assert all(own.shape == other.shape == drawn[0][0].shape for own, other in drawn)


def state(predictor: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in predictor.state_dict().items()}


def test_a_seed_gives_the_same_numbers() -> None:
    fits, states = [], []
    for seed in (3, 3, 4):
        torch.manual_seed(seed + 100)
        torch.rand(seed)
        predictor = model()
        before = torch.get_rng_state()
        fits.append(fit_links(predictor, LinkTask(clubs(), hits=20), QUICK, seed))
        states.append(state(predictor))
        assert torch.equal(before, torch.get_rng_state())
    assert fits[0].losses == fits[1].losses and fits[0].test == fits[1].test
    assert states[0] == states[1] and fits[0].losses != fits[2].losses


def test_encoder_and_others_have_rates_of_their_own() -> None:
    start = state(model())
    for changed, rates in (
        ("encoder.weight", {"encoder_rate": 0.1, "rate": 1e-12}),
        ("scale", {"encoder_rate": 0.0, "rate": 0.1}),
    ):
        predictor = model()
        fit_links(predictor, LinkTask(clubs(), hits=20), replace(QUICK, epochs=1, **rates), 0)
        moved = {
            name
            for name, value in state(predictor).items()
            if not torch.allclose(torch.tensor(value), torch.tensor(start[name]), atol=1e-6)
        }
        assert moved == {changed}


def test_gradients_of_either_part_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[tuple[float, float]] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *arguments: Any) -> Any:
        parts = [group["params"] for group in self.param_groups]
        norms.append(
            tuple(float(torch.cat([p.grad.flatten() for p in own]).norm()) for own in parts)  # type: ignore[misc]
        )
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    for clip in (None, 1e-3):
        fit_links(model(), LinkTask(clubs(), hits=20), replace(QUICK, epochs=1, clip=clip), 0)
    free, held = norms[: len(norms) // 2], norms[len(norms) // 2 :]
    assert min(free[0]) > 1e-3
    assert all(norm <= 1e-3 * 1.001 for both in held for norm in both)


def test_patience_ends_training() -> None:
    class Constant(Embeddings):
        def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
            return 0 * super().score(graph, x, pairs)

    fit = fit_links(Constant(), LinkTask(clubs(), hits=20), replace(QUICK, patience=3), 0)
    assert fit.epoch == 1 and len(fit.losses) == 4


def test_the_reciprocal_rank_is_taken_where_no_hits_are() -> None:
    task = LinkTask(clubs(), hits=None)
    found = task.measure(torch.tensor([5.0, 1.0]), torch.tensor([4.0, 3.0, 1.0]))
    assert found == pytest.approx((1 + 1 / 3.5) / 2)


class Told:
    def __init__(self, stop_after: int) -> None:
        self.losses: list[float] = []
        self.stop_after = stop_after

    def skip(self, steps: int) -> None:
        raise AssertionError(steps)

    def advance(self, loss: float, tokens_per_second: float) -> None:
        assert tokens_per_second > 0
        self.losses.append(loss)

    def stop(self) -> bool:
        return len(self.losses) == self.stop_after


def test_a_reporter_hears_of_epochs_and_stops_them() -> None:
    told, begun = Told(99), []
    fit = fit_links(
        model(), LinkTask(clubs(), hits=20), replace(QUICK, epochs=3), 0, told, begun.append
    )
    assert told.losses == fit.losses and begun == [0, 1, 2]
    told = Told(2)
    with pytest.raises(Interrupted):
        fit_links(model(), LinkTask(clubs(), hits=20), QUICK, 0, told)
    assert len(told.losses) == 2


def test_scores_leave_the_mode_and_have_no_gradient() -> None:
    predictor = model()
    split = clubs()
    one, other = (link_scores(predictor, split.graph, None, split.test) for _ in range(2))
    assert torch.equal(one, other) and predictor.training and not one.requires_grad


def test_a_loss_that_is_not_finite_is_told() -> None:
    predictor = model()
    with torch.no_grad():
        predictor.scale.fill_(math.inf)
    with pytest.raises(InputError, match="the loss is nan in epoch 1"):
        fit_links(predictor, LinkTask(clubs(), hits=20), QUICK, 0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch": 0}, "batch=0"),
        ({"rate": 0.0}, r"rate=0\.0"),
        ({"encoder_rate": -1.0}, "encoder_rate=-1"),
        ({"clip": 0.0}, "clip=0"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_wrong_settings_are_told(values: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        LinkTraining(**values)


ENCODER = EncoderConfig(60, ids=True, convolution="pure-gcn", layers=1, dim=8)
MAKES: dict[str, Callable[[], nn.Module]] = {
    "NCN": lambda: NCN(NCNConfig(ENCODER, dropout=0.0)),
    "NCNC": lambda: NCNC(NCNCConfig(ENCODER, dropout=0.0, calibration=Calibration(3.0, 0.1))),
    "NBFNet": lambda: NBFNet(NBFNetConfig(1, 4, 2, dependent=False)),
}
SHARED = list(product(MAKES, (1, 31, 32)))
"""Predictors that draw nothing in training, and how many positives two ranks share: of one, a rank
has none."""


def shared(name: str, size: int) -> dict[str, list[float]]:
    """What training left, and the weights; each rank makes a predictor of its own."""
    torch.manual_seed(distribution.rank())
    predictor, split, begun = MAKES[name]().double(), clubs(), []
    task = LinkTask(replace(split, train=split.train[:, : 10 * size]), hits=5)
    training = LinkTraining(6, size, 0.02, 0.02, clip=0.2, patience=2)
    fit = fit_links(predictor, task, training, 0, before_epoch=begun.append)
    assert begun == list(range(len(fit.losses)))
    weights = torch.cat([parameter.detach().flatten() for parameter in predictor.parameters()])
    chosen = [fit.epoch, fit.valid, fit.test]
    return {"losses": fit.losses, "valids": [*fit.valids, *chosen], "weights": weights.tolist()}


def work(folder: Path) -> None:
    rank = distribution.rank()
    found = {f"{name} {size}": shared(name, size) for name, size in SHARED}
    (folder / f"rank {rank}").write_text(json.dumps(found))
    told = Told(2 if rank else 99)
    with pytest.raises(Interrupted):
        fit_links(model(), LinkTask(clubs(), hits=20), QUICK, 0, told)
    (folder / f"told {rank}").write_text(json.dumps(told.losses))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(__file__, folder)
    return folder


@pytest.mark.parametrize(("name", "size"), SHARED)
def test_two_ranks_train_as_one_process(name: str, size: int, ranks: Path) -> None:
    found = [json.loads((ranks / f"rank {rank}").read_text())[f"{name} {size}"] for rank in (0, 1)]
    assert found[0] == found[1]
    for what, values in shared(name, size).items():
        assert found[0][what] == pytest.approx(values, rel=1e-9), what


def test_ranks_stop_together(ranks: Path) -> None:
    one, other = (json.loads((ranks / f"told {rank}").read_text()) for rank in range(2))
    assert one == other and len(one) == 2


if __name__ == "__main__":
    as_rank(work)
