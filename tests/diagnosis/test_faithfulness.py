import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from compiled_networks import graphs_for, run
from polypath.diagnosis.faithfulness import (
    attention_agreement,
    gaps,
    linear_cka,
    linear_probe,
    relative_drift,
    trace_accuracy,
)
from polypath.errors import InputError
from polypath.graphs.compilation import GraphBatch, Rollout, Trace, choices, compiled

NAMES = ["bfs", "bellman-ford", "dfs"]
NAMES_OF_MEASURES = ["overlap", "credited", "cosine", "argmax"]


def on(algorithm: str, *sizes: int) -> tuple[GraphBatch, Rollout, Trace]:
    graphs = graphs_for(algorithm, list(sizes), 5, 0.3)
    return graphs, *run(compiled(algorithm, max(sizes)), graphs)


def uniform(attention: Tensor) -> Tensor:
    """Attention that is equal wherever there is some or could be."""
    return torch.full_like(attention, 1 / attention.shape[-1])


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_compiled_network_is_faithful_to_itself(algorithm: str) -> None:
    graphs, rollout, wanted = on(algorithm, 12, 7)
    accuracy = trace_accuracy(rollout, graphs, wanted)
    assert accuracy.output == accuracy.joint == accuracy.followed == 1
    assert set(accuracy.hints.values()) == {1.0}
    allowed = choices(algorithm, graphs, wanted)
    own = attention_agreement(rollout.attention, rollout.attention, allowed, wanted.unfinished)
    assert [own.best(name) for name in NAMES_OF_MEASURES] == pytest.approx([1.0] * 4)


def test_agreement_with_uniform_attention_is_one_over_the_degree() -> None:
    graphs, rollout, wanted = on("bfs", 12, 12)
    mask = graphs.edges | torch.eye(12, dtype=torch.bool)
    spread = (mask / mask.sum(-1, keepdim=True))[None, :, None, None].expand(
        rollout.attention.shape
    )
    allowed = choices("bfs", graphs, wanted)
    found = attention_agreement(spread, rollout.attention, allowed, wanted.unfinished)
    rows = allowed.any(-1)[:, :, 0, 0] & wanted.unfinished[..., None]
    degrees = mask.sum(-1).expand(rows.shape)[rows].double()
    assert found.best() == pytest.approx(float((1 / degrees).mean()))
    assert found.best("cosine") == pytest.approx(float(degrees.rsqrt().mean()))
    options = allowed[:, :, 0, 0].sum(-1)[rows]
    assert found.best("credited") == pytest.approx(float((options / degrees).mean()))


@pytest.mark.parametrize("name", NAMES_OF_MEASURES)
def test_the_best_head_is_found_among_permuted_ones(name: str) -> None:
    graphs, rollout, wanted = on("dfs", 9)
    allowed = choices("dfs", graphs, wanted)
    swapped = rollout.attention.flip(3)
    more = torch.cat([uniform(swapped[:, :, :, :1]), swapped], 3)
    found = attention_agreement(more, rollout.attention, allowed, wanted.unfinished)
    assert getattr(found, name).shape == (2, 2, 3)
    assert found.best(name) == pytest.approx(1.0) and found.mean(name) < 0.8
    assert torch.isnan(found.overlap[1, 1]).all()  # the head that is free


def test_agreement_is_total_variation_row_by_row() -> None:
    torch.manual_seed(0)
    shape = (3, 2, 2, 2, 4, 4)
    own, reference = (torch.randn(shape).double().softmax(-1) for _ in range(2))
    allowed, counted = torch.rand(shape) < 0.3, torch.rand(3, 2) < 0.8
    found = attention_agreement(own, reference, allowed, counted)
    for layer in range(2):
        for head in range(2):
            for other in range(2):
                alike, credited = [], []
                for t, b, i in np.ndindex(3, 2, 4):
                    options = allowed[t, b, layer, head, i]
                    if not options.any() or not counted[t, b]:
                        continue
                    p, q = own[t, b, layer, other, i], reference[t, b, layer, head, i]
                    alike.append(float(torch.minimum(p, q).sum()))
                    rest = float(torch.minimum(p, q)[~options].sum())
                    credited.append(rest + float(min(p[options].sum(), q[options].sum())))
                assert float(found.overlap[layer, head, other]) == pytest.approx(np.mean(alike))
                assert float(found.credited[layer, head, other]) == pytest.approx(np.mean(credited))


def test_trace_accuracy_counts_steps_that_are_not_finished_and_nodes_that_are_real() -> None:
    graphs, rollout, wanted = on("bfs", 9, 4)
    steps = wanted.steps.tolist()
    assert steps[0] > steps[1] >= 1
    raw = rollout.hints["reach"].clone()
    raw[steps[1] :, 1] *= -1  # after the end
    raw[:, 1, 4:] *= -1  # of padding
    same = rollout._replace(hints=rollout.hints | {"reach": raw})
    assert trace_accuracy(same, graphs, wanted).joint == 1
    raw = rollout.hints["reach"].clone()
    raw[1, 0, 3] *= -1  # one node in the second step of the first graph
    other = trace_accuracy(rollout._replace(hints=rollout.hints | {"reach": raw}), graphs, wanted)
    total = 9 * steps[0] + 4 * steps[1]
    assert other.hints["reach"] == pytest.approx(1 - 1 / total)
    assert other.joint == pytest.approx(1 - 1 / sum(steps))
    assert other.followed == pytest.approx((1 / steps[0] + 1) / 2)
    assert other.output == 1


def test_one_among_nodes_is_right_or_wrong_once_a_step() -> None:
    graphs, rollout, wanted = on("dfs", 6)
    raw = rollout.hints["active"].clone()
    raw[2, 0] = raw[2, 0].flip(-1) + torch.arange(6.0)
    wrong = rollout._replace(hints=rollout.hints | {"active": raw})
    found = trace_accuracy(wrong, graphs, wanted).hints
    assert found["active"] == pytest.approx(1 - 1 / int(wanted.steps)) and found["pi"] == 1


def test_scalars_may_be_a_little_off_and_networks_may_have_no_hints() -> None:
    graphs, rollout, wanted = on("bellman-ford", 8)
    near = rollout._replace(hints=rollout.hints | {"d": rollout.hints["d"] + 0.04})
    assert trace_accuracy(near, graphs, wanted).joint == 1
    assert trace_accuracy(near, graphs, wanted, tolerance=0.01).hints["d"] == 0
    silent = trace_accuracy(rollout._replace(hints={}), graphs, wanted)
    assert silent.joint is None and silent.followed is None and silent.output == 1


def test_kernels_align_up_to_rotation_and_scale() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 5).double()
    rotation = torch.linalg.qr(torch.randn(5, 5).double())[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, torch.randn(200, 4).double()) < 0.1
    y = x[:, :2] @ torch.randn(2, 3).double()
    centre = torch.eye(200).double() - 1 / 200
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    wanted = float((k * m).sum() / (k.norm() * m.norm()))
    assert linear_cka(x, y) == pytest.approx(wanted)
    assert math.isnan(linear_cka(x, torch.ones(200, 1)))


def test_probes_find_what_is_there_linearly() -> None:
    torch.manual_seed(0)
    states, train = torch.randn(400, 6), torch.arange(400) < 300
    number = states @ torch.randn(6) + 2
    assert linear_probe(states, number, train).score > 0.999
    assert linear_probe(states, torch.randn(400), train).score < 0.1
    flag = states[:, 0] > 0.8
    probe = linear_probe(states, flag, train)
    assert probe.chance == pytest.approx(float((~flag[300:]).double().mean()))
    assert probe.score > probe.chance
    always = linear_probe(states, torch.ones(400, dtype=torch.bool), train)
    assert always.score == always.chance == 1


def test_drift_and_gaps() -> None:
    start = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0, 0.0]])}
    now = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0, 0.5]])}
    assert relative_drift(now, start) == pytest.approx(0.1)
    assert relative_drift(start, start) == 0
    assert gaps(1.0, 0.75, 0.25) == (0.25, 0.5)


def test_wrong_input_is_told() -> None:
    graphs, rollout, wanted = on("bfs", 9)
    shorter = replace(wanted, hints={k: v[:-1] for k, v in wanted.hints.items()})
    with pytest.raises(InputError, match="steps beside"):
        trace_accuracy(rollout, graphs, shorter)
    allowed = choices("bfs", graphs, wanted)
    with pytest.raises(InputError, match="all but heads the same"):
        attention_agreement(rollout.attention[:1], rollout.attention, allowed, wanted.unfinished)
    with pytest.raises(InputError, match="3 samples beside 4"):
        linear_cka(torch.ones(3, 1), torch.ones(4, 1))
    with pytest.raises(InputError, match="all samples are on one side"):
        linear_probe(torch.ones(3, 1), torch.ones(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(InputError, match="different names"):
        relative_drift({"a": torch.ones(1)}, {"b": torch.ones(1)})
