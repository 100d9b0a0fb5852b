"""Small images to classify, by a stack of residual layers that may be routed.

An image is one thing: its pixels as a vector, as in DynaMoE's experiments.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pvariance

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.diagnosis import activity, follows_entropy, shares
from polypath.errors import InputError
from polypath.language import RoutedLayers, build_stack
from polypath.recipes.trials import Facts
from polypath.routing import MoE, Routing, given, losses, record, routed_layers
from polypath.training.interrupt import Interrupted
from polypath.training.optimisers import adamw
from polypath.training.parts import Reporter

LAYERS, WIDTH, HIDDEN, BATCH = 4, 64, 32, 256


@dataclass(frozen=True)
class Images:
    """x (N, pixels) between 0 and 1, their class y (N,), of `classes`."""

    x: Tensor
    y: Tensor
    classes: int


def digits(seed: int) -> tuple[Images, Images]:
    """scikit-learn's 1,797 digits of 8 × 8 pixels; four fifths to train on, the rest to test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    cut = len(y) * 4 // 5
    return Images(x[order[:cut]], y[order[:cut]], 10), Images(x[order[cut:]], y[order[cut:]], 10)


def idx(folder: Path) -> tuple[Images, Images]:
    """Images in the format of MNIST, gzipped; nine tenths of them to train on, the last to test.

    folder: has one *images*idx3*.gz and one *labels*idx1*.gz of as many.
    Raises InputError when they are not there or not that.
    """
    x = _array(folder, "*images*idx3*.gz", 3).flatten(1).float() / 255
    y = _array(folder, "*labels*idx1*.gz", 1).long()
    if len(x) != len(y):
        raise InputError(f"{folder}: {len(x)} images and {len(y)} labels")
    cut, classes = len(y) * 9 // 10, int(y.max()) + 1
    return Images(x[:cut], y[:cut], classes), Images(x[cut:], y[cut:], classes)


def _array(folder: Path, pattern: str, axes: int) -> Tensor:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder}: {len(found)} files like {pattern}; one is needed")
    try:
        data = gzip.decompress(found[0].read_bytes())
    except (OSError, EOFError) as error:
        raise InputError(f"{found[0]}: not gzip: {error}") from error
    sizes = np.frombuffer(data[4 : 4 + 4 * axes], ">u4").tolist()
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) != 4 + 4 * axes + int(np.prod(sizes)):
        raise InputError(f"{found[0]}: not an IDX file of bytes with {axes} axes")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * axes).copy()).view(*sizes)


class Classifier(nn.Module):
    """x (N, pixels) to logits (N, classes), over residual layers behind their norms.

    routed: what the layers are, or the width of a dense one.
    """

    def __init__(self, pixels: int, classes: int, routed: RoutedLayers | int) -> None:
        super().__init__()
        self.enter = nn.Linear(pixels, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        if isinstance(routed, int):
            layers: list[nn.Module] = [_dense(routed) for _ in range(LAYERS)]
        else:
            layers = list(build_stack(routed, WIDTH, HIDDEN, LAYERS))
        self.layers = nn.ModuleList(layers)
        self.leave = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.leave(x)


def _dense(hidden: int) -> nn.Module:
    linear = (nn.Linear(WIDTH, hidden, bias=False), nn.Linear(hidden, WIDTH, bias=False))
    return nn.Sequential(linear[0], nn.GELU(approximate="tanh"), linear[1])


def fit(
    routed: RoutedLayers | int, epochs: int, folder: Path | None, seed: int, reporter: Reporter
) -> tuple[Facts, str]:
    """Train one classifier, on the digits or on a folder's images; see `measured`."""
    data, test = digits(seed) if folder is None else idx(folder)
    torch.manual_seed(seed)
    model = Classifier(data.x.shape[1], data.classes, routed)
    optimiser = adamw(model, 1e-3, 0.01)
    order = torch.Generator().manual_seed(seed)
    seconds: list[float] = []
    step = 0
    for _ in range(epochs):
        lengths: list[float] = []
        for rows in torch.randperm(len(data.y), generator=order).split(BATCH):
            began = time.perf_counter()
            loss = advance(model, data.x[rows], data.y[rows], step)
            lengths.append(length(model))
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(time.perf_counter() - began)
            step += 1
        reporter.advance(loss, BATCH / median(seconds))
        if reporter.stop():
            raise Interrupted
    facts = measured(model, data, test) | {
        "step milliseconds": 1e3 * median(seconds),
        "gradient variance": pvariance(lengths) / fmean(lengths) ** 2,
    }
    return facts, f"{facts['accuracy']:.1%} right"


def advance(model: nn.Module, x: Tensor, y: Tensor, step: int) -> float:
    """Gradients of one step; its cross-entropy in nats."""
    model.train()
    with given(step=step):
        loss = F.cross_entropy(model(x), y)
    (loss + sum(losses(model).values())).backward()
    return float(loss.detach())


def length(model: nn.Module) -> float:
    """The Euclidean length of all gradients together."""
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack([grad.norm() for grad in found])))


@torch.no_grad()
def measured(model: Classifier, data: Images, test: Images) -> Facts:
    """What a classifier gets right, what it costs and how its experts are used.

    accuracy: of the test images, 0 to 1. parameters, and active: those that an image meets, in the
    mean over test images. Where it is routed, of the training images, by layer: load spread, the
    coefficient of variation of loads; dead, experts that nothing chose; counts, how many images
    chose 0, 1, … experts; follows, the correlation of that with entropy, None where either is
    constant.
    """
    model.eval()
    accuracy = float((model(test.x).argmax(1) == test.y).double().mean())
    total = sum(parameter.numel() for parameter in model.parameters())
    facts: Facts = {"accuracy": accuracy, "parameters": total, "active": total}
    layers = routed_layers(model)
    if layers:
        with record(model) as routes:
            model(test.x)
        facts["active"] -= idle(layers, routes.joined())
        with record(model) as routes:
            model(data.x)
        facts |= _use(routes.joined())
    return facts


def idle(layers: Mapping[str, MoE], routes: Mapping[str, Routing]) -> float:
    """Parameters of experts that a thing does not meet, in the mean over things."""
    return sum(
        sum(p.numel() for p in layers[name].experts.parameters())
        * (1 - float(routing.count().double().mean()) / routing.num_experts)
        for name, routing in routes.items()
    )


def _use(routes: Mapping[str, Routing]) -> Facts:
    loads = [shares(routing) * routing.num_experts for routing in routes.values()]
    follows = [follows_entropy(routing) for routing in routes.values()]
    return {
        "load spread": [float(load.std(correction=0)) for load in loads],
        "dead": [int((load == 0).sum()) for load in loads],
        "counts": [activity(routing).tolist() for routing in routes.values()],
        "follows": [None if value != value else value for value in follows],
    }
