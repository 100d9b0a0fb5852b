"""Problems for routers: what is known of them holds."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.recipes.skills import (
    DIM,
    EMBEDDING,
    NUISANCE,
    PROJECTED,
    SHARPNESS,
    SKILLS,
    SPLITS,
    WIDTH,
    Case,
    Choosing,
    Imaged,
    Problem,
    Skilled,
    collate,
    imaged,
    skilled,
)
from polypath.routing import record
from polypath.surgery.neighbours import batches, chosen_layers, look


def right(problem: Problem, cases: list[Case]) -> float:
    seen = look(problem.model, chosen_layers(problem.model, 5), batches(cases, 512, collate))
    return float(seen.right.double().mean())


def stacked(cases: list[Case]) -> tuple[Tensor, Tensor]:
    return torch.stack([own.x for own in cases]), torch.stack([own.embedding for own in cases])


def test_the_layer_is_two_rules_weighted_by_what_the_router_reads() -> None:
    normal = torch.randn
    rules, rows = normal(12, DIM), normal(12, PROJECTED + NUISANCE)
    x = normal(20, WIDTH)
    said = Skilled(rules, rows)(x)
    for own, logits in zip(x, said, strict=True):
        scores = rows @ own[: PROJECTED + NUISANCE]
        best = scores.topk(2)
        opinion = SHARPNESS * (best.values.softmax(0) * (rules[best.indices] @ own[-DIM:])).sum()
        wanted = torch.stack([-opinion / 2, opinion / 2])
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_draw_is_its_seed_and_tasks_do_not_meet() -> None:
    one, same, other = (skilled(2.0, 50, seed) for seed in (3, 3, 4))
    for split in ("train", "validation", "seen", "unseen"):
        x, z = stacked(getattr(one, split))
        again, _ = stacked(getattr(same, split))
        assert torch.equal(x, again)
        assert x.shape[1] == WIDTH and z.shape[1] == EMBEDDING
    assert not torch.equal(stacked(one.seen)[0], stacked(other.seen)[0])
    assert len(one.train) == len(one.validation) == 300
    parts = [set(SPLITS[name]) for name in ("train", "validation", "unseen")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 30
    assert SPLITS["seen"] == SPLITS["train"]
    assert all({task % SKILLS for task in part} == set(range(SKILLS)) for part in parts)


def test_noise_scatters_and_the_right_experts_would_do_better() -> None:
    shares = {}
    for nuisance in (0.0, 2.5, 6.0):
        problems = [skilled(nuisance, 1000, seed) for seed in range(4)]
        shares[nuisance] = sum(right(own, own.unseen) for own in problems) / 4
        ideal = sum(own.ideal[1] for own in problems if own.ideal) / 4
        assert shares[nuisance] < ideal
    assert shares[0.0] > shares[2.5] + 0.03 > shares[6.0] + 0.06
    # As specified: about 0.86 of the right experts, about 0.7 and 0.61 of the routers that hear.
    assert 0.83 < ideal < 0.9 and 0.68 < shares[2.5] < 0.76 and 0.57 < shares[6.0] < 0.65


def test_labels_are_of_what_is_asked_not_of_what_routers_read() -> None:
    problem = skilled(2.5, 2000, 0)
    x, _ = stacked(problem.seen)
    y = torch.tensor([own.y for own in problem.seen]).double()
    assert abs(float(y.mean()) - 0.5) < 0.05
    heard = x[:, PROJECTED : PROJECTED + NUISANCE].double()
    assert abs(torch.corrcoef(torch.cat([heard, y[:, None]], 1).T)[-1, :-1]).max() < 0.1


def test_a_classifier_answers_among_its_options_and_its_layers_do_not_see_them() -> None:
    problem = imaged(Imaged(None, 2, 40, 100, 60), 0)
    model = problem.model
    assert isinstance(model, Choosing)
    x, _ = stacked(problem.seen[:30])
    other = x.clone()
    other[:, -10:] = 1
    said = []
    for asked in (x, other):
        with record(model) as routes, torch.no_grad():
            said.append((model(asked), routes.joined()))
    (chosen, first), (free, second) = said
    options = x[:, -10:] == 1
    assert (options.sum(1) == 2).all()
    assert torch.equal(chosen == -torch.inf, ~options)
    assert torch.equal(chosen[options], free[options])
    for name in first:
        assert torch.equal(first[name].scores, second[name].scores)


def test_tasks_of_images_are_pairs_that_do_not_meet() -> None:
    problem = imaged(Imaged(None, 1, 40, 100, 60), 1)
    classes = {
        name: {own.y for own in getattr(problem, name)}
        for name in ("train", "validation", "seen", "unseen")
    }
    assert classes["train"] == classes["seen"] and len(classes["train"]) == 6
    assert len(classes["validation"]) == len(classes["unseen"]) == 2
    assert len(set().union(*classes.values())) == 10
    for name in classes:
        for own in getattr(problem, name):
            options = set(own.x[-10:].nonzero()[:, 0].tolist())
            assert own.y in options <= classes[name] and len(options) == 2
    images = [own.x[:64] for name in classes for own in getattr(problem, name)]
    assert len({tuple(image.tolist()) for image in images}) == len(images)


def test_embeddings_are_principal_components_of_the_training_images() -> None:
    problem = imaged(Imaged(None, 1, 40, 200, 60), 0)
    x, z = stacked(problem.train)
    pixels = x[:, :64].double() - x[:, :64].double().mean(0)
    values, vectors = torch.linalg.eigh(pixels.T @ pixels)
    wanted = pixels @ vectors[:, -EMBEDDING:].flip(1)
    torch.testing.assert_close(z.double().abs(), wanted.abs(), rtol=1e-2, atol=1e-3)
    assert values[-1] > values[0]


def written(folder: Path, classes: int, count: int = 120) -> Path:
    """A folder of random images in MNIST's format."""
    drawn = np.random.default_rng(0)
    y = (np.arange(count) % classes).astype(np.uint8)
    x = drawn.integers(0, 256, (count, 3, 3), dtype=np.uint8)
    for name, data in (("t-images-idx3-ubyte.gz", x), ("t-labels-idx1-ubyte.gz", y)):
        head = bytes([0, 0, 8, data.ndim]) + np.array(data.shape, ">u4").tobytes()
        (folder / name).write_bytes(gzip.compress(head + data.tobytes()))
    return folder


def test_images_may_come_from_a_folder(tmp_path: Path) -> None:
    problem = imaged(Imaged(written(tmp_path, 7), 1, 20, 30, 40), 0)
    assert {own.y for own in problem.train} <= set(range(7))
    used = [own for part in (problem.train, problem.validation, problem.unseen) for own in part]
    assert len({own.y for own in used}) <= 6  # the seventh is in no pair
    assert used[0].x.shape == (9 + 7,)
    with pytest.raises(InputError, match="5 classes; 6 are needed"):
        imaged(Imaged(written(tmp_path, 5), 1, 20, 30, 40), 0)
