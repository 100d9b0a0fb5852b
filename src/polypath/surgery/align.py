"""Routers of a trained model aligned with its tasks: likes are sent alike, where that was right.

Only routers are trained: for each sample, the cross-entropy of its answer and λ times how far its
routing is from that of its successful neighbours. n samples, B in a batch, E experts.
Source: RoMA, arXiv 2511.07419.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.plain import encode
from polypath.routing import MoE, Routing, routed_layers
from polypath.surgery.attribution import evaluation
from polypath.surgery.freezing import Trainable, changed, fingerprints
from polypath.surgery.neighbours import (
    Batch,
    Collate,
    Look,
    Vectors,
    agreement,
    answers,
    batches,
    chosen_layers,
    collate,
    embeddings,
    look,
    losses,
    manifold,
    neighbours,
    orders,
    succeeds,
)
from polypath.surgery.report import Check, Move, Size, Surgery
from polypath.surgery.supervision import Target, supervise


@dataclass(frozen=True)
class AlignConfig:
    """How to align.

    layers: the last so many routed layers, or their names.
    neighbours, epsilon, sigma: see `polypath.surgery.neighbours.neighbours`.
    weight: λ; 0 is plain router tuning. It goes with squared distances, which are small where
        experts are many: 1, 5 and 20 are worth trying.
    learning_rate: of Adam. steps: of batches of `batch`, in orders drawn with `seed`.
    refresh: steps between new looks at what neighbours do; None to keep that of the given model.
    successful: only samples that the given model answers right pull others.
    Raises InputError for a number out of range.
    """

    layers: int | Sequence[str] = 5
    neighbours: int = 3
    epsilon: float | None = None
    sigma: float | None = None
    weight: float = 5.0
    learning_rate: float = 1e-4
    steps: int = 300
    batch: int = 16
    refresh: int | None = None
    successful: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"neighbours": 1, "steps": 1, "batch": 1, "refresh": 1, "weight": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < float("inf"):
                raise InputError(f"align: {name}={value}; {bound} or more is right")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"align: learning_rate={self.learning_rate}; a positive one is right")


@dataclass(frozen=True)
class Step:
    """One step, before its update, in the mean over the batch.

    task: nats. manifold: Σ over layers of ‖r - r̄‖², not weighted; None where λ = 0.
    """

    task: float
    manifold: float | None


@dataclass(frozen=True)
class Change:
    """Before and after, of the samples that were trained on, or of those that were held out.

    success: the share that is answered right. agreement: of routing and embeddings, see
    `polypath.surgery.neighbours.agreement`.
    """

    success: Sequence[float]
    agreement: Sequence[float]


@dataclass(frozen=True)
class Aligned(Surgery):
    """The report of an alignment.

    layers: those whose routers changed. trained: how many numbers. share: of all that the model
    has. sigma: of the kernel. pulled: the share of samples that have neighbours. manifold: of the
    samples (equation 7), mean, before and after. held_out: None where nothing was.
    """

    layers: Sequence[str] = ()
    trained: int = 0
    share: float = 0.0
    sigma: float = 0.0
    pulled: float = 0.0
    manifold: Sequence[float] = ()
    samples: Change = Change((), ())
    held_out: Change | None = None
    history: Sequence[Step] = ()


def routers(model: nn.Module, which: int | Sequence[str] = 5) -> Trainable:
    """What is trained: the chosen layers' routers, but for what other layers' routers share.

    Raises InputError where that is nothing.
    """
    layers = chosen_layers(model, which)
    others = [layer for name, layer in routed_layers(model).items() if name not in layers]
    shared = {id(p) for layer in others for p in layer.router.parameters()}
    own = [p for layer in layers.values() for p in layer.router.parameters()]
    parts = Trainable(p for p in own if id(p) not in shared)
    if not parts.count():
        raise InputError(f"align: the routers of {', '.join(layers)} have no parameters to train")
    return parts


Penalty = Callable[[int, Tensor, Tensor], AbstractContextManager[Callable[[], Tensor]]]
"""Around the forward of a step on samples (B,) with places (B,): what to add to its loss after."""


class Manifold:
    """The pull towards neighbours: a penalty, Σ over layers of ‖r_i - r̄_i‖², mean over a batch.

    It differs from equation 7 by the spread of the neighbours themselves, which has no gradient.
    means: r̄ of each layer (n, E). some (n,) bool: which samples are pulled at all.
    renew: gives new means after every `every` steps, or None.
    """

    def __init__(
        self,
        layers: Mapping[str, MoE],
        means: Vectors,
        some: Tensor,
        renew: Callable[[], Vectors] | None = None,
        every: int | None = None,
    ) -> None:
        self.layers = layers
        self.means = means
        self.some = some
        self.renew = renew
        self.every = every

    @contextmanager
    def __call__(
        self, step: int, samples: Tensor, places: Tensor
    ) -> Iterator[Callable[[], Tensor]]:
        if self.renew and self.every and step and step % self.every == 0:
            self.means = self.renew()
        pulled = self.some[samples]
        held = {name: means[samples[pulled]] for name, means in self.means.items()}

        def teach(name: str, layer: MoE, rows: Tensor, routing: Routing) -> Target | None:
            if not pulled.any():
                return None
            device = routing.scores.device
            return Target(held[name].to(device), places[pulled].to(device))

        with supervise(self.layers, teach, "squared") as lessons:
            # On the CPU, for layers may lie on several devices.
            yield (
                lambda: (
                    sum((far.sum().cpu() for far in lessons.distances.values()), torch.zeros(()))
                    / len(samples)
                )
            )


@contextmanager
def in_float32(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside the block parameters in half precision, where small steps drown, are in float32."""
    before = [(p, p.dtype) for p in parameters if p.dtype in (torch.float16, torch.bfloat16)]
    for parameter, _ in before:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)


def tune(
    model: nn.Module,
    parts: Trainable,
    samples: Sequence[Any],
    config: AlignConfig,
    penalty: Penalty | None = None,
    collate: Collate = collate,
) -> list[Step]:
    """Train parts of a model on samples, in place: cross-entropy and λ times a penalty.

    Without a penalty, or with λ = 0, the cross-entropy alone. The model is in evaluation mode.
    Raises InputError where a loss is not finite.
    """
    optimiser = torch.optim.Adam(parts.parameters, lr=config.learning_rate)
    history = []
    with evaluation(model), parts.alone(model), in_float32(parts.whole):
        for step, own in enumerate(orders(len(samples), config.batch, config.steps, config.seed)):
            batch = collate([samples[i] for i in own.tolist()])
            with ExitStack() as stack:
                added = None
                if penalty is not None and config.weight:
                    added = stack.enter_context(penalty(step, own, batch.places))
                task = losses(answers(model, batch), batch).mean()
                far = None if added is None else added()
            loss = task if far is None else task + config.weight * far.to(task)
            if not loss.isfinite():
                raise InputError(f"align: the loss of step {step} is not finite; train more slowly")
            history.append(Step(float(task.detach()), None if far is None else float(far.detach())))
            _backward(loss)
            parts.step(optimiser)
    return history


def _backward(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise InputError("align: no gradient reaches the routers; their gate has none")
    loss.backward()


def align(
    model: nn.Module,
    samples: Sequence[Any],
    config: AlignConfig | None = None,
    held_out: Sequence[Any] = (),
    collate: Collate = collate,
) -> Aligned:
    """Align a model's routers with the tasks of samples, in place; nothing else changes.

    samples: `Sample`s of a causal language model, or what `collate` makes batches of. Their
        `embedding`s say what is near; where they have none, the model's own first-layer states do.
    held_out: samples that are only measured, never anybody's neighbours.
    Auxiliary losses of routers are not in the loss. Who succeeds, and so pulls, is what the given
    model answers right, also where neighbours' routing is refreshed.
    Raises InputError where there is nothing to train or to learn from.
    """
    began = time.perf_counter()
    config = config or AlignConfig()
    layers, parts = chosen_layers(model, config.layers), routers(model, config.layers)
    if not samples:
        raise InputError("align: no samples to learn from")
    prints, size = fingerprints(model), Size.of(model)
    old = {
        name: [p.detach().clone() for p in own.router.parameters()] for name, own in layers.items()
    }

    def seen(of: Sequence[Any]) -> Look:
        return look(model, layers, batches(of, config.batch, collate))

    both = [list(own) for own in (samples, held_out) if len(own)]
    spaces = [embeddings(model, own, config.batch) for own in both]
    before = [seen(own) for own in both]
    able = before[0].right if config.successful else torch.ones_like(before[0].right)
    near = (config.neighbours, config.epsilon, config.sigma)
    table = neighbours(spaces[0], able, *near)
    if config.weight and not table.some.any():
        raise InputError("align: no sample has a successful neighbour, so nothing pulls; weight=0")
    first, renew = table.means(before[0].vectors), lambda: table.means(seen(samples).vectors)
    penalty = Manifold(layers, first, table.some, renew, config.refresh)
    history = tune(model, parts, samples, config, penalty, collate)
    after = [seen(own) for own in both]
    changes = [
        Change(
            [float(one.right.double().mean()) for one in pair],
            [agreement(one.joined, space, config.neighbours) for one in pair],
        )
        for space, *pair in zip(spaces, before, after, strict=True)
    ]
    share = parts.count() / size.parameters
    return Aligned(
        operation="align",
        settings=encode(config),
        before=size,
        after=Size.of(model),
        moves=[_move(name, layers[name], was) for name, was in old.items()],
        checks=[_check_rest(model, prints, parts)],
        notes=[
            f"{parts.count():,} numbers are trained, {share:.4%} of all",
            f"{float(table.some.double().mean()):.1%} of the samples have neighbours to be like",
        ],
        seconds=time.perf_counter() - began,
        layers=list(layers),
        trained=parts.count(),
        share=share,
        sigma=table.sigma,
        pulled=float(table.some.double().mean()),
        manifold=[float(manifold(one.joined, table).mean()) for one in (before[0], after[0])],
        samples=changes[0],
        held_out=changes[1] if len(both) > 1 else None,
        history=history,
    )


def _move(name: str, layer: MoE, was: Sequence[Tensor]) -> Move:
    pairs = [(then, p.detach()) for then, p in zip(was, layer.router.parameters(), strict=True)]
    far = sum(float((now - then).double().square().sum()) for then, now in pairs)
    length = sum(float(then.double().square().sum()) for then, _ in pairs)
    moved = (far / max(length, 1e-30)) ** 0.5
    return Move(f"router of {name}", "as trained", f"moved by {moved:.2%} of its length")


def _check_rest(model: nn.Module, before: dict[str, str], parts: Trainable) -> Check:
    own = {id(parameter) for parameter in parts.whole}
    names = {name for name, t in model.state_dict(keep_vars=True).items() if id(t) in own}
    moved = len(set(changed(before, fingerprints(model))) - names)
    return Check("tensors beside the chosen routers that changed, their number", float(moved), 0.0)


def oracle(
    model: nn.Module,
    samples: Sequence[Any],
    which: int | Sequence[str] = 5,
    steps: int = 50,
    learning_rate: float = 0.3,
    size: int = 16,
    collate: Collate = collate,
) -> Look:
    """The routing that would serve each sample best, and what it gets right. Not deployable.

    A diagnosis: it reads the answer of the very sample that it routes (equation 1). The scores of
    the chosen layers' routers at the last input are free; from the pretrained ones, Adam lowers
    the cross-entropy of each sample alone. Told is the best on the way: that of the lowest
    cross-entropy, of those that are right where any is. The model stays as it is.
    Raises InputError where a router has no scorer.
    """
    layers = chosen_layers(model, which)
    for name, layer in layers.items():
        if not isinstance(getattr(layer.router, "scorer", None), nn.Module):
            raise InputError(f"oracle: the router of {name} has no scorer to be set free")
    found: list[Look] = []
    with evaluation(model), Trainable().alone(model):
        for batch in batches(samples, size, collate):
            found.append(_freed(model, layers, batch, steps, learning_rate))
    vectors = {name: torch.cat([one.vectors[name] for one in found]) for name in layers}
    return Look(vectors, torch.cat([one.right for one in found]))


def _freed(
    model: nn.Module, layers: Mapping[str, MoE], batch: Batch, steps: int, learning_rate: float
) -> Look:
    """The best routing of one batch's samples."""
    start = look(model, layers, iter([batch]))
    free = {
        name: nn.Parameter(cast(Routing, layer.last).scores[batch.places].detach().clone())
        for name, layer in layers.items()
    }

    def hook(name: str) -> Callable[..., Any]:
        def put(scorer: nn.Module, args: Any, scored: Any) -> Any:
            scores, *state = scored if isinstance(scored, tuple) else (scored,)
            scores = scores.index_copy(0, batch.places.to(scores.device), free[name])
            return (scores, *state) if state else scores

        return put

    optimiser = torch.optim.Adam(free.values(), lr=learning_rate)
    vectors, right = dict(start.vectors), start.right
    best = torch.full((len(batch.places),), torch.inf)
    with ExitStack() as stack:
        for name, layer in layers.items():
            scorer = cast(nn.Module, layer.router.scorer)
            stack.callback(scorer.register_forward_hook(hook(name)).remove)
        for _ in range(steps + 1):
            logits = answers(model, batch)
            each = losses(logits, batch)
            able = succeeds(logits, batch).cpu()
            cost = each.detach().cpu() + 1e6 * ~able
            better = cost < best
            best, right = torch.where(better, cost, best), torch.where(better, able, right)
            for name, own in free.items():
                said = own.detach().softmax(-1).float().cpu()
                vectors[name] = torch.where(better[:, None], said, vectors[name])
            optimiser.zero_grad()
            _backward(each.sum())
            optimiser.step()
    return Look(vectors, right)
