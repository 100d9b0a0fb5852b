from typing import Any

import pytest
import torch

from compiled_networks import graphs_for, run
from polypath.errors import InputError
from polypath.graphs.compilation import Reasoner, compiled, shape_for
from polypath.training.algorithms import (
    AlgorithmTraining,
    drawn,
    fit_reasoner,
    reasoning_losses,
)
from polypath.training.interrupt import Interrupted

NAMES = ["bfs", "bellman-ford", "dfs"]
SMALL = AlgorithmTraining(steps=4, batch=3, sizes=(4, 6))


@pytest.mark.parametrize("algorithm", NAMES)
def test_losses_are_means_over_nodes_and_steps_that_count(algorithm: str) -> None:
    torch.manual_seed(0)
    model = Reasoner(shape_for(algorithm, 18)).double()
    graphs = graphs_for(algorithm, [3, 6], 4, 0.4)
    rollout, wanted = run(model, graphs)
    found = reasoning_losses(rollout, graphs, wanted)
    assert list(found) == ["output", *wanted.hints]
    sums: dict[str, list[float]] = {name: [] for name in found}
    for b, size in enumerate(graphs.sizes.tolist()):
        for i in range(size):
            chances = rollout.scores[b, i, :size].log_softmax(-1)
            sums["output"].append(-float(chances[wanted.pi[b, i]]))
            for t in range(int(wanted.steps[b])):
                for name, raw in rollout.hints.items():
                    value, target = raw[t, b, i], wanted.hints[name][t + 1, b, i]
                    if name == "active":  # one among the nodes, once a step
                        if i:
                            continue
                        chances = raw[t, b, :size].log_softmax(-1)
                        loss = -float(chances[wanted.hints[name][t + 1, b].int().argmax()])
                    elif name in ("pi", "colour"):
                        loss = -float(value.log_softmax(-1)[target])
                    elif name == "d":
                        loss = float((value - target) ** 2)
                    else:
                        loss = -float((value if target else -value).sigmoid().log())
                    sums[name].append(loss)
    for name, values in sums.items():
        assert float(found[name]) == pytest.approx(sum(values) / len(values)), name


@pytest.mark.parametrize("algorithm", NAMES)
def test_compiled_networks_have_nothing_to_learn(algorithm: str) -> None:
    graphs = graphs_for(algorithm, [7, 7, 5], 1, 0.4)
    rollout, wanted = run(compiled(algorithm, 8), graphs)
    for name, loss in reasoning_losses(rollout, graphs, wanted).items():
        assert float(loss) < 1e-12, name


def test_training_learns_bfs() -> None:
    torch.manual_seed(0)
    model = Reasoner(shape_for("bfs", 16, layer_norm=True))
    looks: list[int] = []
    training = AlgorithmTraining(steps=80, batch=8, sizes=(5, 6), rate=5e-3)
    losses = fit_reasoner(model, training, 0, look=looks.append, every=40)
    assert looks == [0, 40, 80] and len(losses) == 80 and not model.training
    assert sum(losses[-10:]) < 0.25 * sum(losses[:10])
    rollout, wanted = run(model, graphs_for("bfs", [6] * 50, 99, 0.5))
    assert float((rollout.pi == wanted.pi).double().mean()) > 0.85


def test_a_fit_is_its_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = Reasoner(shape_for("bfs", 8))
        fit_reasoner(model, SMALL, seed)
        states.append(model.nodes.weight.detach())
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_batches_have_one_of_the_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = {drawn("dfs", SMALL, generator)[0].weights.shape for _ in range(20)}
    assert seen == {(3, 4, 4), (3, 6, 6)}


class Watching:
    def __init__(self, stops: bool) -> None:
        self.told, self.stops = 0, stops

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.told += 1

    def stop(self) -> bool:
        return self.stops


def test_a_reporter_hears_of_fifty_steps_and_can_stop() -> None:
    training = AlgorithmTraining(steps=120, batch=1, sizes=(2,))
    reporter = Watching(stops=False)
    fit_reasoner(Reasoner(shape_for("bfs", 4)), training, 0, reporter)
    assert reporter.told == 2
    reporter = Watching(stops=True)
    with pytest.raises(Interrupted):
        fit_reasoner(Reasoner(shape_for("bfs", 4)), training, 0, reporter)
    assert reporter.told == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"sizes": ()}, r"sizes=\[\]"),
        ({"sizes": (3, 0)}, r"sizes=\[3, 0\]"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"clip": float("inf")}, "clip=inf"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AlgorithmTraining(**values)


def test_a_loss_that_is_not_finite_is_told() -> None:
    model = Reasoner(shape_for("bfs", 8))
    with torch.no_grad():
        model.nodes.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="in step 1; a lower rate may help"):
        fit_reasoner(model, SMALL, 0)
