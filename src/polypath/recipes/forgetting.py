"""Models that know two kinds of things, and ways to make them forget one.

Points of eight domains under a small classifier, and two sources of text under a language model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from polypath.language import RoutedLayers, attach, build_stack
from polypath.language.tokens import Windows
from polypath.recipes.trials import Facts
from polypath.routing import losses
from polypath.surgery.attribution import Aim, Batch, affinity, agreement, ranked
from polypath.surgery.objectives import GDIFF, NPO, next_token_losses
from polypath.surgery.unlearn import Measure, Unlearned, Unlearning, unlearn
from polypath.training.checkpoint import load_state
from polypath.training.interrupt import Interrupted
from polypath.training.optimisers import adamw, cosine_schedule
from polypath.training.parts import Reporter

DOMAINS, WIDTH, READ, LABELS, EXPERTS, K, LAYERS = 8, 24, 6, 4, 8, 2, 2
BATCH, FORGOTTEN, TESTED = 256, 32, 4096
"""Points in a batch, batches of the domain to forget, and points of a test."""
CHANCE = 1 / LABELS
SOURCES, LEARNT, FORGOTTEN_AT_ONCE = ("forget", "retain"), 16, 8
"""Both sources, windows of each in a step of training, and in one of forgetting."""
LOW = "low-affinity expert"
SHOWN = 8192
"""Bytes that affinities are taken of."""
STRIDE = 50
"""Steps of training between reports."""


@dataclass(frozen=True)
class Points:
    """x (N, 24), their label y (N,) of four."""

    x: Tensor
    y: Tensor


class Domains:
    """Eight domains: x = 2 μ + N(0, I), labelled by a linear map of their own on six coordinates.

    The means μ are orthonormal.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.means = torch.linalg.qr(self._normal(WIDTH, DOMAINS))[0].T
        self.maps = self._normal(DOMAINS, READ, LABELS)

    def draw(self, count: int, domains: Sequence[int]) -> Points:
        """Points that no other draw has, of these domains in equal parts on average."""
        which = torch.randint(len(domains), (count,), generator=self.generator)
        domain = torch.tensor(domains)[which]
        x = 2 * self.means[domain] + self._normal(count, WIDTH)
        labels = torch.einsum("nr,nrl->nl", x[:, :READ], self.maps[domain]).argmax(1)
        return Points(x, labels)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


class Block(nn.Module):
    """x + routed(norm(x))."""

    def __init__(self, routed: nn.Module) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.routed = routed

    def forward(self, x: Tensor) -> Tensor:
        return x + self.routed(self.norm(x))


class Classifier(nn.Module):
    """x (N, 24) to logits (N, 4) over two residual routed layers."""

    def __init__(self) -> None:
        super().__init__()
        routed = RoutedLayers(num_experts=EXPERTS, k=K, hidden=WIDTH, kind="gelu", losses={})
        self.layers = nn.ModuleList(Block(one) for one in build_stack(routed, WIDTH, WIDTH, LAYERS))
        self.leave = nn.Linear(WIDTH, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.leave(x)


def label_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, 1) cross-entropies of a classifier, all of which count."""
    nats = F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")[:, None]
    return nats, torch.ones_like(nats, dtype=torch.bool)


@torch.no_grad()
def accuracy(points: Points, model: nn.Module) -> float:
    """The share of points that are labelled right."""
    return float((model(points.x).argmax(1) == points.y).double().mean())


def ways_of_domains(steps: int) -> dict[str, Unlearning]:
    """How a domain is forgotten, by gradient ascent each; the last ones aim at experts by draw."""
    plain = Unlearning(learning_rate=2e-3, goal=CHANCE + 0.01, steps=steps)
    every = EXPERTS * LAYERS
    return {
        "uoe": plain,
        "anchor by mean": replace(plain, reduction="mean"),
        "no anchor": replace(plain, anchor=0.0),
        "all experts and routers": replace(plain, count=every, within_layer=False, anchor=0.0),
        "experts only": replace(plain, scope="experts"),
        "routers only": replace(plain, scope="routers"),
        **{f"{LOW} {number}": plain for number in (1, 2, 3)},
    }


def low(every: Sequence[Aim], count: int, seed: int) -> list[tuple[str, int]]:
    """Experts drawn from the half of all that has the lowest affinity, none twice."""
    lower = every[len(every) // 2 :]
    order = torch.randperm(len(lower), generator=torch.Generator().manual_seed(seed))
    return [(lower[i].layer, lower[i].expert) for i in order[:count].tolist()]


def on_domains(training: int, steps: int, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train a classifier on all domains and make copies of it forget the first in every way.

    pretrained: test accuracy on the first domain, and on the others. agreement: of two halves of
    the forgotten points, see `agreement`. ways: see `came_to`.
    """
    began = time.perf_counter()
    task, (first, *others) = Domains(seed), range(DOMAINS)
    torch.manual_seed(seed)
    model = Classifier()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for step in range(training):
        points = task.draw(BATCH, range(DOMAINS))
        loss = F.cross_entropy(model(points.x), points.y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        tell(reporter, step, training, loss.detach(), BATCH, began)
    model.eval()
    drawn = [task.draw(BATCH, [first]) for _ in range(FORGOTTEN)]
    batches = [{"x": points.x, "labels": points.y} for points in drawn]
    valid, test = ([task.draw(TESTED, which) for which in ([first], others)] for _ in range(2))
    every = ranked(affinity(model, batches))
    lower = iter(low(every, 3, seed))
    efficacy, utility = (partial(accuracy, points) for points in valid)
    found = {}
    for way, config in ways_of_domains(steps).items():
        if way.startswith(LOW):
            config = replace(config, targets=[next(lower)])
        copy = deepcopy(model)
        done = unlearn(copy, batches, (), config, efficacy, utility, label_losses)
        tested = {"forget": accuracy(test[0], copy), "retain": accuracy(test[1], copy)}
        found[way] = came_to(done) | tested
    facts = {
        "pretrained": [accuracy(points, model) for points in test],
        "agreement": agreement(affinity(model, batches[::2]), affinity(model, batches[1::2]), K),
        "affinities": [aim.affinity for aim in every],
        "ways": found,
        "seconds": time.perf_counter() - began,
    }
    return facts, f"uoe keeps {found['uoe']['retain']:.1%} of the other domains"


def ways_of_text(steps: int, goal: float) -> dict[str, Unlearning]:
    """How a source is forgotten: in one expert, by all parameters, and in an expert by draw."""
    uoe = Unlearning(goal=goal, steps=steps, tokens=SHOWN, every=2)
    full = replace(uoe, scope="all")
    return {
        "uoe": uoe,
        "no anchor": replace(uoe, anchor=0.0),
        LOW: uoe,
        "ga": full,
        "gdiff": replace(full, objective=GDIFF()),
        "gdiff in one expert": replace(uoe, objective=GDIFF()),
        "npo": replace(full, objective=NPO()),
        "npo in one expert": replace(uoe, objective=NPO()),
    }


@dataclass(frozen=True)
class Reading:
    """Two sources of text as bytes, kept in a file, and how they are learnt and forgotten.

    training: steps on windows of both. steps: at most so many to forget in, at each of the learning
    rates. windows: of each source to validate on; twice as many are to test on.
    """

    path: Path
    training: int
    steps: int
    rates: Sequence[float]
    dim: int
    layers: int
    context: int
    windows: int

    def draw(self, source: str, split: str) -> Windows:
        """Windows of a split of "forget" or "retain"."""
        name = f"{source}.{split}"
        return Windows(load_state(self.path)[0][name].long(), self.context, name)

    def measures(self, split: str) -> list[Measure]:
        """Minus bits a byte of a split of both sources: forget efficacy, and utility."""
        count = 2 * self.windows if split == "test" else self.windows
        tiles = [self.draw(source, split).tiling(count) for source in SOURCES]
        return [partial(negative_bits, one) for one in tiles]

    def learnt(self, seed: int, reporter: Reporter) -> Any:
        """A model that was trained on equal parts of both sources, in evaluation mode."""
        began = time.perf_counter()
        torch.manual_seed(seed)
        model = self._model().train()
        optimiser = adamw(model, 8e-3, 0.1)
        sources = [self.draw(source, "train") for source in SOURCES]
        for step in range(self.training):
            read = torch.cat([own.batch(step, seed, LEARNT) for own in sources])
            for group in optimiser.param_groups:
                group["lr"] = 8e-3 * cosine_schedule(step, self.training, min(20, self.training))
            nats = next_token_losses(model, {"input_ids": read})[0].mean()
            (nats + sum(losses(model).values())).backward()
            optimiser.step()
            optimiser.zero_grad()
            tell(reporter, step, self.training, nats.detach(), read.numel(), began)
        return model.eval()

    def _model(self) -> Any:
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=self.dim,
            intermediate_size=self.dim,
            num_hidden_layers=self.layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=self.context + 1,
            initializer_range=0.5 * self.dim**-0.5,
            tie_word_embeddings=True,
        )
        return attach(LlamaForCausalLM(config), RoutedLayers(num_experts=EXPERTS, k=K))


def unigram_entropy(text: Tensor) -> float:
    """Bits a byte: the loss of who knows no more of a text than how often each byte occurs."""
    counts = text.long().bincount().double()
    return float(torch.special.entr(counts / counts.sum()).sum() / math.log(2))


@torch.no_grad()
def negative_bits(windows: Tensor, model: nn.Module) -> float:
    """Minus the loss of a language model on windows (N, length + 1) of bytes, in bits a byte."""
    return -float(next_token_losses(model, {"input_ids": windows})[0].mean()) / math.log(2)


def on_text(task: Reading, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train a model on both sources and make copies of it forget the first in every way.

    A way's learning rate is chosen on validation text; with it, it runs once on test text.
    goal: bits a byte, the unigram entropy of the forgotten source. pretrained: bits a byte of test
    text, of both. agreement: as of `on_domains`. ways: see `came_to`, with the rate, and bits a
    byte of the retained source at the goal, None where that was not reached.
    """
    began = time.perf_counter()
    model = task.learnt(seed, reporter)
    goal = unigram_entropy(load_state(task.path)[0]["forget.train"])
    forget, retain = (
        [{"input_ids": own.batch(n, seed + 1000, FORGOTTEN_AT_ONCE)} for n in range(64)]
        for own in (task.draw(source, "train") for source in SOURCES)
    )
    first, second = (affinity(model, forget[half::2], SHOWN) for half in (0, 1))
    every = ranked(affinity(model, forget, SHOWN))

    def tried(config: Unlearning, split: str) -> Unlearned:
        began = time.perf_counter()
        efficacy, utility = task.measures(split)
        done = unlearn(deepcopy(model), forget, retain, config, efficacy, utility)
        tell(reporter, 0, 1, done.curve[-1].efficacy, len(done.history), began)
        return done

    found = {}
    for way, config in ways_of_text(task.steps, -goal).items():
        if way == LOW:
            config = replace(config, targets=low(every, 1, seed))
        rated = [replace(config, learning_rate=rate) for rate in task.rates]
        best = max(rated, key=lambda config: worth(tried(config, "valid"), -goal))
        done = came_to(tried(best, "test"))
        kept = at(done["curve"], -goal)
        bits = None if kept is None else -kept
        found[way] = done | {"rate": best.learning_rate, "retain": bits}
    facts = {
        "goal": goal,
        "pretrained": [-measure(model) for measure in task.measures("test")],
        "agreement": agreement(first, second, K),
        "affinities": [aim.affinity for aim in every],
        "ways": found,
        "seconds": time.perf_counter() - began,
    }
    return facts, f"uoe: {found['uoe']['retain'] or math.nan:.3f} bits a byte are left at the goal"


def worth(done: Unlearned, goal: float) -> tuple[bool, float]:
    """What a learning rate is chosen by: that it reaches the goal, then the utility there."""
    curve = came_to(done)["curve"]
    kept = at(curve, goal)
    return kept is not None, -min(efficacy for efficacy, _ in curve) if kept is None else kept


def came_to(done: Unlearned) -> Facts:
    """What is told of an unlearning.

    gates: the targets' affinity for what is forgotten, before and after, their mean. overlap: mean
    over layers. curve: [efficacy, utility] of every measurement.
    """
    before, after = (
        [float(own[aim.layer][aim.expert] or 0.0) for aim in done.targets]
        for own in (done.affinities, done.affinities_after)
    )
    return {
        "steps": len(done.history),
        "stopped": done.stopped,
        "share": done.share,
        "gates": [fmean(before), fmean(after)],
        "overlap": fmean(done.overlap.values()),
        "curve": [[point.efficacy, point.utility] for point in done.curve],
    }


def at(curve: Sequence[Sequence[float]], level: float) -> float | None:
    """The utility where efficacy first falls to a level, between measurements; None if never."""
    for i, (efficacy, utility) in enumerate(curve):
        if efficacy <= level:
            if i == 0:
                return utility
            above, kept = curve[i - 1]
            return kept + (utility - kept) * (above - level) / (above - efficacy)
    return None


def tell(reporter: Reporter, step: int, steps: int, loss: Any, things: int, began: float) -> None:
    """Report every so many steps of so many things; raises Interrupted where the run is to stop."""
    if (step + 1) % STRIDE == 0 or step + 1 == steps:
        reporter.advance(float(loss), things * (step + 1) / (time.perf_counter() - began))
        if reporter.stop():
            raise Interrupted
