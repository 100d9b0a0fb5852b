import math
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graphs_at_random import from_networkx
from polypath.errors import InputError
from polypath.graphs import LinkSplit, split_links
from polypath.graphs.link_moe import GateConfig, ScoreMixture
from polypath.graphs.predictors import link_scores
from polypath.graphs.scorers import HeuristicConfig, HeuristicScorer
from polypath.training.link_moe import (
    GateTraining,
    fit_gate,
    fit_link_moe,
    gate_loss,
    halves,
    held_loss,
    validation_parts,
)
from polypath.training.links import LinkTask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_that_of_the_authors() -> None:
    right, wrong = 3 * torch.randn(7, 1), 3 * torch.randn(5, 1)
    y, n = right.sigmoid(), wrong.sigmoid()
    wanted = -(y + 1e-15).log().mean() - 10 * (1 - n + 1e-15).log().mean()
    torch.testing.assert_close(gate_loss(right, wrong, 10.0), wanted)


@given(st.integers(2, 40), st.sampled_from([0.01, 0.5, 0.8, 0.99]))
def test_parts_are_all_pairs_once(count: int, share: float) -> None:
    first, rest = halves(count, share, generator())
    assert sorted([*first.tolist(), *rest.tolist()]) == list(range(count))
    assert len(first) == min(max(round(share * count), 1), count - 1)
    with pytest.raises(InputError, match="1 pairs to validate on"):
        halves(1, share, generator())


def rows(count: int, shift: float, seed: int) -> Tensor:
    """Two experts, of which the structure tells which one knows."""
    noise = torch.randn(count, 4, generator=generator(seed))
    group = noise[:, 0] > 0
    said = torch.where(torch.stack([group, ~group], 1), noise[:, 2:] + shift, 2 * noise[:, 2:])
    return torch.cat([noise[:, :1], said], 1)


TRAIN, HELD = ((rows(120, 1.5, 2 * n), rows(90, -1.5, 2 * n + 1)) for n in range(2))


def mixture(**values: Any) -> ScoreMixture:
    torch.manual_seed(0)
    return ScoreMixture(0, 1, 2, GateConfig(("structure",), dim=8, **values))


QUICK = GateTraining(epochs=40, batches=3, rate=0.02)


def test_the_best_state_by_held_out_pairs_is_left() -> None:
    own = mixture()
    before = held_loss(own, HELD, 1.0)
    fit = fit_gate(own, TRAIN, HELD, QUICK, 0)
    assert fit.losses[0] == before and fit.loss == min(fit.losses) == fit.losses[fit.epoch]
    assert fit.loss == held_loss(own, HELD, 1.0) < before - 0.1 and not own.training
    generic = nn.Sequential(nn.Linear(3, 1))
    assert fit_gate(generic, TRAIN, HELD, QUICK, 0).epoch > 0


def test_no_training_is_a_choice_and_patience_ends_it() -> None:
    swapped = TRAIN[1], TRAIN[0]  # what is learnt is wrong for those that choose
    own = mixture(dropout=0.0)
    start = {name: value.clone() for name, value in own.state_dict().items()}
    fit = fit_gate(own, swapped, HELD, GateTraining(80, rate=0.02, patience=6), 0)
    assert fit.epoch == 0 and len(fit.losses) == 7
    assert all(torch.equal(value, start[name]) for name, value in own.state_dict().items())


def test_a_seed_gives_the_same_gate() -> None:
    fits = []
    for seed in (3, 3, 4):
        own = mixture()
        before = torch.get_rng_state()
        fits.append(fit_gate(own, TRAIN, HELD, QUICK, seed).losses)
        assert torch.equal(before, torch.get_rng_state())
    assert fits[0] == fits[1] != fits[2]


def test_the_weight_of_negatives_moves_scores() -> None:
    """A bias to a constant: ln(P / (w M)) with means, so ln(1 / w)."""
    for weight in (1.0, 10.0):
        bias = nn.Linear(3, 1)
        nn.init.zeros_(bias.weight)
        zeros = torch.zeros(30, 3), torch.zeros(50, 3)
        training = GateTraining(400, 1, 0.05, 0.0, negative_weight=weight, patience=400)
        fit_gate(bias, zeros, zeros, training, 0)
        assert bias.bias.item() == pytest.approx(math.log(1 / weight), abs=1e-3)


def clubs() -> tuple[LinkSplit, Tensor]:
    """Communities, and features that tell of another partition, by which some links are made."""
    graph = nx.planted_partition_graph(5, 16, 0.5, 0.01, seed=1)
    kinds = torch.randperm(80, generator=generator()) % 10
    for i, j in torch.combinations(torch.arange(80)).tolist():
        if kinds[i] == kinds[j]:
            graph.add_edge(i, j)
    x = nn.functional.one_hot(kinds, 10).float()
    return split_links(from_networkx(graph), generator(), 0.15, 0.2), x


def heuristics(*names: str) -> list[HeuristicScorer]:
    return [HeuristicScorer(HeuristicConfig(name)) for name in names]


def test_a_mixture_of_heuristics_beats_either() -> None:
    split, x = clubs()
    experts = heuristics("ra", "cosine")
    before = [expert.scale.clone() for expert in experts]
    task = LinkTask(split, x, None)
    model, fit = fit_link_moe(experts, task, 0, training=GateTraining(200, rate=5e-3))
    assert fit.epoch > 0 and not model.training
    assert all(torch.equal(a, b.scale) for a, b in zip(before, experts, strict=True))

    def rank(predictor: nn.Module) -> float:
        both = split.test, split.test_negatives
        return task.measure(*(link_scores(predictor, split.graph, x, each) for each in both))

    assert rank(model) > max(map(rank, experts)) + 0.03
    again, _ = fit_link_moe(experts, task, 0, training=GateTraining(200, rate=5e-3))
    scores = [link_scores(one, split.graph, x, split.test) for one in (model, again)]
    assert torch.equal(*scores)


def test_only_links_to_validate_on_are_read() -> None:
    split, x = clubs()
    seen: list[Tensor] = []

    class Noting(HeuristicScorer):
        def score(self, graph: Any, x: Any, pairs: Tensor) -> Tensor:
            seen.append(pairs)
            assert not graph.has(split.valid).any()
            return super().score(graph, x, pairs)

    fit_link_moe([Noting(HeuristicConfig("cn"))], LinkTask(split, x), 0, training=GateTraining(1))
    assert [pairs.sort(0).values.tolist() for pairs in seen] == [
        pairs.sort(0).values.tolist() for pairs in (split.valid, split.valid_negatives)
    ]


def test_scales_are_fitted_on_what_trains_the_gate_alone() -> None:
    split, x = clubs()
    training = GateTraining(1, share=0.7)
    (right, wrong), (rest, _) = validation_parts(split, 0.7, 5)
    model, _ = fit_link_moe(heuristics("cn", "ra"), LinkTask(split, x), 5, training=training)
    other, _ = fit_link_moe(heuristics("cn", "ra"), LinkTask(split, x), 5, training=training)
    parts = [
        other.rows(split.graph, x, pairs[:, own])
        for pairs, own in ((split.valid, right), (split.valid_negatives, wrong))
    ]
    other.mixture.fit_scales(parts[0], parts[1])
    for name, value in model.mixture.state_dict().items():
        if "calibration" in name or name.endswith(("mean", "scale")):
            torch.testing.assert_close(value, other.mixture.state_dict()[name])
    assert len(rest) == split.valid.shape[1] - len(right)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batches": 0}, "batches=0"),
        ({"patience": 0}, "patience=0"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"negative_weight": -1.0}, "negative_weight=-1.0"),
        ({"decay": -1.0}, "decay=-1.0"),
        ({"share": 1.0}, "share=1.0"),
    ],
)
def test_wrong_settings_are_told(values: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        GateTraining(**values)


def test_a_loss_that_is_not_finite_is_told() -> None:
    wrong = TRAIN[0].clone()
    wrong[0, 1] = math.nan
    with pytest.raises(InputError, match="the gate's loss is nan"):
        fit_gate(mixture(), TRAIN, (wrong, HELD[1]), QUICK, 0)
