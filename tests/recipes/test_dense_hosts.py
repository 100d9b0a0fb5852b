from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.recipes.dense_hosts import (
    Clock,
    Host,
    HostConfig,
    batches,
    pretrain,
    read_bytes,
    scores,
    tiling,
)
from polypath.training.interrupt import Interrupted

TINY = Host(dim=16, layers=1, heads=2, hidden=24, context=16, batch=4, steps=12)


def text(tmp_path: Path) -> dict[str, torch.Tensor]:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {n} of a text\n" for n in range(400)))
    return read_bytes(path, 1.0)


def test_splits_are_the_bytes_of_the_text(tmp_path: Path) -> None:
    splits = text(tmp_path)
    whole = (tmp_path / "text.txt").read_bytes()
    assert b"".join(bytes(splits[n].tolist()) for n in ("train", "valid", "test")) == whole
    assert len(splits["train"]) > 15 * len(splits["test"])


def test_batches_depend_on_the_seed_alone(tmp_path: Path) -> None:
    ids = text(tmp_path)["train"]
    first = list(islice(batches(ids, TINY, 1), 3))
    again = list(islice(batches(ids, TINY, 1), 3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (4, 17)
    assert not torch.equal(first[0], next(batches(ids, TINY, 2)))


class Reporter:
    def __init__(self, steps: int | None = None) -> None:
        self.told: list[float] = []
        self.steps = steps

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.told.append(loss)

    def stop(self) -> bool:
        return len(self.told) == self.steps


def test_a_host_learns_and_scores_are_the_equation(tmp_path: Path) -> None:
    splits = text(tmp_path)
    reporter = Reporter()
    model = pretrain(TINY, splits["train"], 0, Clock(reporter, 64))
    assert len(reporter.told) == 1 and not model.training
    test = tiling(splits["test"], TINY, 5)
    found = scores(model, test)
    with torch.no_grad():
        logits = model(input_ids=test[:, :-1]).logits
    nats = F.cross_entropy(logits.flatten(0, 1), test[:, 1:].flatten())
    assert found["bits"] == pytest.approx(float(nats) / 0.693147, rel=1e-4)
    right = (logits.argmax(-1) == test[:, 1:]).double().mean()
    assert found["accuracy"] == pytest.approx(float(right))
    torch.manual_seed(0)
    fresh = scores(TINY.model(), test)
    assert found["bits"] < fresh["bits"]


def test_a_clock_stops_when_it_is_asked_to() -> None:
    clock = Clock(Reporter(steps=2), 64)
    with pytest.raises(Interrupted):
        for step in range(40):
            clock(step, 1.0)
    assert clock.steps == 20


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="every size is 1 at least"):
        Host(layers=0)
    with pytest.raises(InputError, match="multiple of 2 · heads"):
        Host(dim=10, heads=2)
    for wrong in ({"seeds": 0}, {"windows": 0}, {"rate": 2.0}, {"dim": 5}):
        with pytest.raises(InputError):
            HostConfig(**wrong)
