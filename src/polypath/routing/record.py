"""The one record of a routing decision: which thing went to which experts, and how strongly.

Shapes: T routed things, E experts, K slots per thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.routing.files import read_tensors, write_tensors

_TENSORS = ("scores", "experts", "weights", "probabilities", "mask")


@dataclass(frozen=True, eq=False)
class Routing:
    """Who serves whom, over T things and E experts.

    scores: (T, E) float32 (float64 for float64 inputs), before selection.
    experts: (T, K) int64, the chosen experts, -1 where a slot is empty.
    weights: (T, K), how much each chosen expert counts, 0 where a slot is empty.
    probabilities: (T, E), the gate's view of all experts, or None where it has none.
    mask: (T,) bool, which things count in loads and losses (padding does not), or None for all.
    losses: auxiliary losses by name, scalars already multiplied by their weight.
    state: what the next layer's router may read, or None.
    Raises InputError when shapes do not fit together; values are not looked at.
    """

    scores: Tensor
    experts: Tensor
    weights: Tensor
    probabilities: Tensor | None = None
    mask: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    state: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.experts.ndim != 2:
            raise self._misfit()
        things = self.scores.shape[:1]
        if (
            self.experts.shape[:1] != things
            or self.experts.dtype != torch.int64
            or self.weights.shape != self.experts.shape
            or (self.probabilities is not None and self.probabilities.shape != self.scores.shape)
            or (self.mask is not None and self.mask.shape != things)
            or (self.mask is not None and self.mask.dtype != torch.bool)
        ):
            raise self._misfit()

    def _misfit(self) -> InputError:
        found = {n: t for n in _TENSORS if (t := getattr(self, n)) is not None}
        told = ", ".join(f"{n} {tuple(t.shape)} {t.dtype}" for n, t in found.items())
        return InputError(
            f"Routing: {told} do not fit together; scores and probabilities are (T, E), "
            "experts (T, K) of torch.int64, weights (T, K), mask (T,) of torch.bool"
        )

    def __len__(self) -> int:
        return self.experts.shape[0]

    @property
    def num_experts(self) -> int:
        return self.scores.shape[1]

    def count(self) -> Tensor:
        """(T,) int64: how many experts serve each thing."""
        return (self.experts >= 0).sum(-1)

    def load(self) -> Tensor:
        """(E,) in the dtype of the scores: how many counted things each expert serves."""
        filled = self.experts >= 0
        if self.mask is not None:
            filled = filled & self.mask[:, None]
        load = self.scores.new_zeros(self.num_experts)
        index = self.experts.clamp_min(0).flatten()
        return load.index_add_(0, index, filled.flatten().to(load.dtype))

    def importance(self) -> Tensor:
        """(E,): the sum of the weights that each expert got from counted things."""
        weights = self.weights.to(self.scores.dtype)
        if self.mask is not None:
            weights = weights.masked_fill(~self.mask[:, None], 0.0)
        importance = self.scores.new_zeros(self.num_experts)
        return importance.index_add(0, self.experts.clamp_min(0).flatten(), weights.flatten())

    def entropy(self) -> Tensor:
        """(T,) nats: how undecided the gate was; from `probabilities` scaled to sum to one."""
        if self.probabilities is None:
            raise InputError("entropy: this routing has no probabilities; its router gives none")
        p = self.probabilities / self.probabilities.sum(-1, keepdim=True).clamp_min(1e-20)
        # The slope of -p log p is infinite at zero, where experts that may not be chosen are.
        return torch.special.entr(p.clamp_min(torch.finfo(p.dtype).tiny)).sum(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Routing:
        """The same routing with `change` applied to all tensors but the losses and the state."""
        changed: dict[str, Any] = {
            n: change(t) for n in _TENSORS if (t := getattr(self, n)) is not None
        }
        return replace(self, **changed)

    def to(self, device: str | torch.device) -> Routing:
        """The same record on another device; dtypes are part of it and stay."""
        return self._everywhere(lambda t: t.to(device))

    def detach(self) -> Routing:
        """The same numbers without their autograd history."""
        return self._everywhere(Tensor.detach)

    def _everywhere(self, change: Callable[[Tensor], Tensor]) -> Routing:
        losses = {n: change(v) for n, v in self.losses.items()}
        state = None if self.state is None else change(self.state)
        return replace(self.map(change), losses=losses, state=state)

    def __getitem__(self, index: slice | Tensor) -> Routing:
        """The things that `index` picks (slice, mask, positions); losses and state stay behind."""
        return replace(self.map(lambda t: t[index]), losses={}, state=None)

    @classmethod
    def cat(cls, parts: Sequence[Routing]) -> Routing:
        """Things of several routings over the same experts, one after another.

        Slots are padded with -1 to the widest part; losses and state stay behind.
        """
        if not parts:
            raise InputError("Routing.cat: no routings given; at least one is needed")
        sizes = {part.num_experts for part in parts}
        if len(sizes) > 1:
            raise InputError(
                f"Routing.cat: parts differ in their number of experts {sorted(sizes)}"
            )
        width = max(part.experts.shape[1] for part in parts)
        padded = [part._widened(width) for part in parts]
        probabilities = [p.probabilities for p in parts if p.probabilities is not None]
        masked = any(part.mask is not None for part in parts)
        return cls(
            scores=torch.cat([part.scores for part in parts]),
            experts=torch.cat([part.experts for part in padded]),
            weights=torch.cat([part.weights for part in padded]),
            probabilities=torch.cat(probabilities) if len(probabilities) == len(parts) else None,
            mask=torch.cat([part._counted() for part in parts]) if masked else None,
        )

    def _counted(self) -> Tensor:
        if self.mask is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.experts.device)
        return self.mask

    def _widened(self, width: int) -> Routing:
        missing = (0, width - self.experts.shape[1])
        pad = torch.nn.functional.pad
        return replace(
            self, experts=pad(self.experts, missing, value=-1), weights=pad(self.weights, missing)
        )

    def tensors(self) -> dict[str, Tensor]:
        """The record as named tensors, as it is stored."""
        named = {n: t for n in _TENSORS if (t := getattr(self, n)) is not None}
        named |= {f"losses.{n}": v for n, v in self.losses.items()}
        return named if self.state is None else named | {"state": self.state}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Routing:
        """The record that `tensors` named; raises InputError where a part is missing or misfits."""
        missing = {"scores", "experts", "weights"} - named.keys()
        if missing:
            raise InputError(f"not a routing record: {', '.join(sorted(missing))} missing")
        losses = {n.removeprefix("losses."): v for n, v in named.items() if n.startswith("losses.")}
        parts = {n: named[n] for n in (*_TENSORS, "state") if n in named}
        return cls(**parts, losses=losses)

    def save(self, path: str | Path) -> None:
        """Write the record as a safetensors file."""
        write_tensors(path, self.tensors())

    @classmethod
    def read(cls, path: str | Path) -> Routing:
        """Read what `save` wrote; raises InputError when the file holds something else."""
        return cls.from_tensors(read_tensors(path)[0])
