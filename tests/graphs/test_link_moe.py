"""The properties of the specification, by its numbers, and a mixture of real predictors."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from graphs_at_random import adjacency_of, all_pairs
from polypath import record, replay
from polypath.errors import InputError
from polypath.graphs.decoders import ProductMLP, ProductMLPConfig
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.link_moe import (
    Block,
    Expert,
    GateConfig,
    LinkMoE,
    LinkMoEConfig,
    PairGate,
    ScoreMixture,
    blocks_of,
    pair_rows,
)
from polypath.graphs.ncn import NCN, NCNConfig
from polypath.graphs.pair_features import pair_features
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import SavedPredictor
from polypath.graphs.scorers import HeuristicConfig, HeuristicScorer
from polypath.plain import encode
from polypath.routing import RoutingContext
from polypath.training.link_moe import GateTraining, fit_gate, gate_loss

KARATE = adjacency_of(nx.karate_club_graph())
EVERY = all_pairs(34)
PAIRS = EVERY[:, ~KARATE.has(EVERY)]
X = torch.rand(34, 5, generator=torch.Generator().manual_seed(0))
FEATURES, STRUCTURE = 3, 2


def mixture(
    experts: int, inputs: Sequence[Block] = ("features", "structure"), **values: Any
) -> Any:
    torch.manual_seed(0)
    gate = GateConfig(inputs, **{"dropout": 0.0} | values)
    return ScoreMixture(FEATURES, STRUCTURE, experts, gate).eval()


def rows_with(scores: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(len(scores), FEATURES + STRUCTURE, generator=generator)
    return torch.cat([known, scores], 1)


def bias_of(own: ScoreMixture) -> nn.Parameter:
    return own.router.scorer.bias  # type: ignore[return-value, union-attr]


def scores(things: int, experts: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(things, experts, generator=torch.Generator().manual_seed(seed))


def test_the_worked_number() -> None:
    own = mixture(2, ())
    with torch.no_grad():
        bias_of(own).copy_(torch.tensor([math.log(3), 0.0]))
    y = own(rows_with(torch.tensor([[2.0, -1.0]]))).sigmoid()
    torch.testing.assert_close(own.last.weights, torch.tensor([[0.75, 0.25]]))
    assert y.item() == pytest.approx(0.777300, abs=1e-6)
    y.sum().backward()
    assert bias_of(own).grad[0].item() == pytest.approx(0.097371, abs=1e-6)  # type: ignore[index]


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
def test_the_gradient_of_gate_logits_is_that_of_the_specification(
    experts: int, things: int, seed: int
) -> None:
    own, given_ = mixture(experts), scores(things, experts, seed)
    y = own(rows_with(given_)).sigmoid()
    (found,) = torch.autograd.grad(y.sum(), own.last.scores, retain_graph=True)
    g, y = own.last.weights, y.detach()
    mean = (g * given_).sum(1, keepdim=True)
    torch.testing.assert_close(found, y * (1 - y) * g * (given_ - mean))
    # Convexity.
    mixed = y.logit()
    assert (given_.amin(1, True) - 1e-3 <= mixed).all()
    assert (mixed <= given_.amax(1, True) + 1e-3).all()


def test_one_expert_is_itself_and_its_gate_does_not_learn() -> None:
    own, given_ = mixture(1), scores(20, 1)
    found = own(rows_with(given_))
    assert torch.equal(found, given_)
    gate_loss(found[:8], found[8:], 10.0).backward()
    assert all(not p.grad.any() for p in own.parameters())


def test_experts_that_agree_teach_the_gate_nothing() -> None:
    own = mixture(3)
    found = own(rows_with(scores(20, 1).expand(-1, 3)))
    gate_loss(found[:8], found[8:], 1.0).backward()
    slopes = torch.cat([p.grad.flatten() for p in own.parameters()])
    assert slopes.abs().max() < 1e-6
    apart = own(rows_with(scores(20, 3)))
    gate_loss(apart[:8], apart[8:], 1.0).backward()
    assert max(p.grad.abs().max() for p in own.parameters()) > 1e-3


def test_a_last_layer_of_zeros_is_the_mean() -> None:
    own, given_ = mixture(4), scores(30, 4)
    with torch.no_grad():
        own.router.scorer.last[-1].weight.zero_()
    torch.testing.assert_close(own(rows_with(given_))[:, 0], given_.mean(1))
    # As does one that reads nothing, before it has learnt.
    torch.testing.assert_close(mixture(4, ())(rows_with(given_))[:, 0], given_.mean(1))


def test_a_gate_without_inputs_is_a_global_ensemble() -> None:
    own, given_ = mixture(3, ()), scores(40, 3)
    assert [name for name, _ in own.named_parameters()] == ["router.scorer.bias"]
    with torch.no_grad():
        bias_of(own).copy_(torch.tensor([1.0, 0.0, -2.0]))
    shares = torch.tensor([1.0, 0.0, -2.0]).softmax(0)
    torch.testing.assert_close(own(rows_with(given_))[:, 0], given_ @ shares)


@pytest.mark.parametrize("expert", range(3))
def test_a_gate_that_is_sure_is_any_expert(expert: int) -> None:
    own, given_ = mixture(3), scores(30, 3)
    with torch.no_grad():
        bias_of(own)[expert] = 1e4
    assert torch.equal(own(rows_with(given_))[:, 0], given_[:, expert])


def test_an_expert_that_knows_nothing_does_no_harm() -> None:
    """A constant score of 0: the likelihood that can be reached is not lower."""
    signal = scores(400, 2) / 3 + torch.tensor([2.0, 0.5]) * torch.arange(400)[:, None].lt(200)
    signal -= torch.tensor([1.0, 0.2])
    more = torch.cat([signal, torch.zeros(400, 1)], 1)
    training = GateTraining(300, batches=1, rate=0.05, decay=0.0, patience=300)

    def reached(own: ScoreMixture, given_: Tensor) -> float:
        parts = rows_with(given_).split(200)
        return fit_gate(own, parts, parts, training, 0).loss

    own = mixture(2, ())
    without = reached(own, signal)
    assert without < gate_loss(*signal.mean(1).split(200), 1.0) - 0.01
    assert reached(mixture(3, ()), more) <= without + 1e-3
    # From where the others are as they were, and it is not chosen.
    beside = mixture(3, ())
    with torch.no_grad():
        bias_of(beside).copy_(torch.cat([bias_of(own), torch.tensor([-30.0])]))
    torch.testing.assert_close(beside(rows_with(more)), own(rows_with(signal)))
    assert reached(beside, more) <= without + 1e-6


def test_probabilities_are_bounded_and_leave_a_floor() -> None:
    """Perfect experts, as probabilities and as logits."""
    perfect = torch.cat([torch.ones(50, 2), torch.zeros(50, 2)])
    own = mixture(2)
    y = own(rows_with(perfect)).sigmoid()
    assert (y >= 0.5).all() and (y <= 0.7311).all()
    loss = gate_loss(*own(rows_with(perfect)).split(50), 10.0)
    assert loss.item() == pytest.approx(10 * math.log(2) + 0.313, abs=1e-3)
    noisy = own(rows_with(scores(200, 2).sigmoid())).sigmoid()
    assert (noisy > 0.5).all() and (noisy < 0.7311).all()
    logits = gate_loss(*own(rows_with(40 * perfect - 20)).split(50), 10.0)
    assert logits.item() < 1e-6


def auc(logits: Tensor, labels: Tensor) -> float:
    return float(roc_auc_score(labels.numpy(), logits.detach().numpy()))


def groups(seed: int, pairs: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, labels and groups: expert g knows group g, and guesses on the other."""
    generator = torch.Generator().manual_seed(seed)
    labels, group = torch.randint(2, (2, pairs), generator=generator)
    noise = torch.randn(pairs, 2, generator=generator)
    own = F.one_hot(group, 2).bool()
    said = torch.where(own, (4.0 * labels - 2)[:, None] + 1.5 * noise, 2.5 * noise)
    visible = 2.0 * group - 1 + 0.3 * torch.randn(pairs, generator=generator)
    known = torch.zeros(pairs, FEATURES + STRUCTURE)
    known[:, FEATURES] = visible
    return torch.cat([known, said], 1), labels, group


@pytest.mark.parametrize("seed", range(3))
def test_a_gate_learns_which_expert_knows(seed: int) -> None:
    rows, labels, group = groups(seed)
    said = rows[:, -2:]
    for expert in range(2):
        assert 0.73 < auc(said[:, expert], labels) < 0.77
    assert auc(said.mean(1), labels) == pytest.approx(0.83, abs=0.015)
    oracle = auc(said.gather(1, group[:, None])[:, 0], labels)
    assert 0.965 < oracle < 0.976
    own = mixture(2, ("structure",), dim=16)
    right, wrong = rows[labels == 1], rows[labels == 0]
    half = [(part[: len(part) // 2], part[len(part) // 2 :]) for part in (right, wrong)]
    own.fit_scales(half[0][0], half[1][0], calibrate=False)
    training = GateTraining(60, batches=1, rate=0.05, decay=0.0)
    fit_gate(own, (half[0][0], half[1][0]), (half[0][1], half[1][1]), training, seed)
    assert auc(own(rows)[:, 0], labels) == pytest.approx(oracle, abs=0.003)
    weight = own.last.weights.gather(1, group[:, None]).mean()
    assert weight.item() >= 0.998


def test_scales_are_those_of_the_rows_that_are_trained_on() -> None:
    own, given_ = mixture(2, ("features", "structure", "scores")), scores(60, 2)
    rows = rows_with(given_) * torch.tensor([1e-3, 1e-3, 1e-3, 1e3, 1.0, 1.0, 1.0]) + 5.0
    rows[:, 4] = 7.0  # a column that never varies
    own.fit_scales(rows[:30], rows[30:])
    gate = own.router.scorer
    told = (rows - gate.mean) / gate.scale
    torch.testing.assert_close(told[:, 3].mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(told[:, [3, 5, 6]].std(0, correction=0), torch.ones(3))
    assert (told[:, 4] == 0).all()
    # Features are divided by one number, and stay 0 where they are.
    torch.testing.assert_close(told[:, :3].square().sum(1).mean(), torch.tensor(1.0))
    torch.testing.assert_close(told[:, 0] / told[:, 1], rows[:, 0] / rows[:, 1])
    other = mixture(2)
    other.fit_scales(rows[:30], rows[30:], calibrate=False)
    assert torch.equal(other.experts.calibration.scale, torch.ones(2))


def test_calibration_is_before_the_mixture() -> None:
    own, given_ = mixture(2), scores(60, 2)
    given_[:30] += 2
    rows = rows_with(given_ * torch.tensor([1e-3, 50.0]))
    own.fit_scales(rows[:30], rows[30:])
    logits = own.experts.calibration(rows[:, -2:])
    assert 0.3 < logits.std(0).min() < logits.std(0).max() < 5
    torch.testing.assert_close(own(rows)[:, 0], (own.last.weights * logits).sum(1))


def test_a_gate_reads_what_it_is_to_read() -> None:
    for inputs in (("features",), ("structure",), ("scores",), ("features", "scores")):
        own, rows = mixture(2, inputs), rows_with(scores(5, 2))  # type: ignore[arg-type]
        rows.requires_grad_()
        own.router(rows).scores.square().sum().backward()
        moved = rows.grad.abs().sum(0) > 0  # type: ignore[union-attr]
        blocks = blocks_of(FEATURES, STRUCTURE, 2)
        for name, columns in blocks.items():
            assert moved[columns].any() == (name in inputs)
    bare = PairGate(blocks_of(0, STRUCTURE, 2), 2, GateConfig(last_layers=2))
    assert list(bare.branches) == ["structure"]
    assert bare(torch.randn(4, STRUCTURE + 2), RoutingContext()).shape == (4, 2)


def predictors() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        HeuristicScorer(HeuristicConfig("aa")),
        ProductMLP(ProductMLPConfig(EncoderConfig(5, layers=0, dim=8, dropout=0.5))),
        NCN(NCNConfig(EncoderConfig(5, convolution="pure-gcn", layers=1, dim=8), dropout=0.5)),
    ]


def model(**values: Any) -> LinkMoE:
    torch.manual_seed(1)
    own = LinkMoE.of(predictors(), **{"features": 5, "gate": GateConfig(dim=4)} | values)
    parts = (own.rows(KARATE, X, part) for part in PAIRS[:, :90].split(45, 1))
    own.mixture.fit_scales(*parts, calibrate=False)
    return own


def test_rows_are_what_their_parts_say() -> None:
    own = model().train()  # experts are in evaluation mode all the same
    rows = own.rows(KARATE, X, PAIRS)
    units = X / X.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows[:, :5], units[PAIRS[0]] * units[PAIRS[1]])
    torch.testing.assert_close(rows[:, :5].sum(1), F.cosine_similarity(X[PAIRS[0]], X[PAIRS[1]]))
    assert torch.equal(rows[:, 5:13], pair_features(KARATE, PAIRS))
    for place, expert in enumerate(own.experts):
        wanted = link_scores(expert, KARATE, X, PAIRS)
        torch.testing.assert_close(rows[:, 13 + place], wanted)
    assert not rows.requires_grad
    assert torch.equal(rows[:, 5:], pair_rows(None, PAIRS, rows[:, 5:13], rows[:, 13:]))


def test_no_gradient_reaches_experts() -> None:
    own = model().train()
    own.score(KARATE, X, PAIRS).square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in own.experts.parameters())
    assert all(p.grad is not None for p in own.mixture.parameters())


def test_both_orders_of_a_pair_have_the_same_score() -> None:
    own = model(structure=("aa", "degrees", "orbits", "concentration", "ppr")).eval()
    found = own.score(KARATE, X, PAIRS)
    assert torch.equal(found, own.score(KARATE, X, PAIRS.flip(0)))


def test_a_pair_that_is_an_edge_is_refused() -> None:
    own, pairs = model(), torch.tensor([[9, 0], [33, 1]])
    with pytest.raises(InputError, match=r"2 pairs are edges of the graph .* the first \(9, 33\)"):
        own.score(KARATE, X, pairs)
    assert own.score(KARATE.without(pairs), X, pairs).isfinite().all()


def test_who_weighs_what_is_recorded_and_replayed(tmp_path: Path) -> None:
    own = model().eval()
    with record(own) as routes:
        wanted = own.score(KARATE, X, PAIRS)
    (routing,) = routes["mixture"]
    assert routing.weights.shape == routing.scores.shape == (PAIRS.shape[1], 3)
    assert (routing.count() == 3).all() and routing.probabilities is not None
    torch.testing.assert_close(routing.weights, routing.scores.softmax(1))
    torch.testing.assert_close(routing.importance().sum(), torch.tensor(float(PAIRS.shape[1])))
    assert (routing.entropy() <= math.log(3) + 1e-6).all()
    with torch.no_grad():
        bias_of(own.mixture).copy_(torch.tensor([9.0, 0.0, 0.0]))
    assert not torch.allclose(own.score(KARATE, X, PAIRS), wanted)
    with replay(own, routes):
        assert torch.equal(own.score(KARATE, X, PAIRS), wanted)


def test_a_saved_mixture_scores_as_before(tmp_path: Path) -> None:
    own = model()
    names = [str(node) for node in range(34)]
    SavedPredictor(own, KARATE, names, X).save(tmp_path)
    found = SavedPredictor.load(tmp_path)
    torch.testing.assert_close(found.scores(PAIRS), link_scores(own, KARATE, X, PAIRS))
    assert isinstance(found.predictor, LinkMoE)
    assert encode(found.predictor.config) == encode(own.config)
    assert not any(p.requires_grad for p in found.predictor.experts.parameters())


def test_wrong_input_is_told() -> None:
    with pytest.raises(InputError, match="did you mean 'features'"):
        GateConfig(("feature",))  # type: ignore[arg-type]
    for values in ({"dim": 0}, {"layers": 0}, {"last_layers": 0}, {"dropout": 1.0}):
        with pytest.raises(InputError, match="gate: dim="):
            GateConfig(**values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no experts"):
        LinkMoE.of([])
    with pytest.raises(InputError, match="unknown link predictor 'NNC'"):
        LinkMoE(LinkMoEConfig([Expert("NNC", {})]))
    own = model()
    for x in (None, X[:, :4], torch.arange(34)):
        with pytest.raises(InputError, match=r"features \(34, 5\) are right"):
            own.score(KARATE, x, PAIRS)
    one = mixture(1).eval()
    one(rows_with(scores(4, 1)))
    with pytest.raises(InputError, match="a routing over 1 experts for 2 scores"):
        mixture(2).experts(rows_with(scores(4, 2)), one.last)


def test_a_configuration_is_kept() -> None:
    own = model(gate=GateConfig(("structure",), dim=6, layers=3, last_layers=2))
    again = LinkMoE(replace(own.config))
    again.load_state_dict(own.state_dict())
    found, wanted = (link_scores(one, KARATE, X, PAIRS) for one in (again, own))
    assert torch.equal(found, wanted)
