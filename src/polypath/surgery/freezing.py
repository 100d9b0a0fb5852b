"""Changing a part of a model, and nothing else: not one bit of any other tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polypath.experts.views import ExpertView


class Trainable:
    """The parts of a model that an operation may change: whole parameters, and cuts of stacks.

    parameters: whole ones. views: of experts; where an expert's matrix is a cut of a stack that it
    shares with others, an optimiser that had the stack would decay and move the others, so what is
    trained is a copy of the cut, which `step` writes back.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] = (), views: Iterable[ExpertView] = ()
    ) -> None:
        self.whole = list(dict.fromkeys(parameters))
        self.cuts = [place for view in views for place in view.places]
        self.copies = [
            nn.Parameter(cut.of(cut.parameter).detach().clone().contiguous()) for cut in self.cuts
        ]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What to give an optimiser."""
        return self.whole + self.copies

    def count(self) -> int:
        """How many numbers may change."""
        return sum(parameter.numel() for parameter in self.parameters)

    @contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """Inside the block only these parts of the model want gradients."""
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter in [*self.whole, *(cut.parameter for cut in self.cuts)]:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, wanted in before:
                parameter.requires_grad_(wanted)
                parameter.grad = None

    def collect(self) -> None:
        """Move the cuts' gradients to their copies; those of the stacks are forgotten."""
        for cut, copy in zip(self.cuts, self.copies, strict=True):
            grad = cut.parameter.grad
            copy.grad = None if grad is None else cut.of(grad).clone()
        for cut in self.cuts:
            cut.parameter.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """Put the copies where they were taken from."""
        for cut, copy in zip(self.cuts, self.copies, strict=True):
            cut.of(cut.parameter).copy_(copy)

    def step(self, optimiser: torch.optim.Optimizer, clip: float | None = None) -> None:
        """A step of an optimiser that has `parameters`, after a backward through the model."""
        self.collect()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip)
        optimiser.step()
        optimiser.zero_grad()
        self.write()


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A hash of every tensor of a model's state by its name; equal where all bits are."""
    return {name: _hash(tensor) for name, tensor in model.state_dict().items()}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The names whose fingerprints differ, or that only one has, in order."""
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


def _hash(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1)
    if data.numel() == 0:
        return f"{tuple(tensor.shape)} {tensor.dtype}"
    told = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    return hashlib.sha256(told + data.view(torch.uint8).numpy().tobytes()).hexdigest()
