"""The one record of a routing decision: which thing went to which experts, and how strongly.

Shapes: T routed things, E experts, K slots per thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from polypath.errors import InputError

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
    """

    scores: Tensor
    experts: Tensor
    weights: Tensor
    probabilities: Tensor | None = None
    mask: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    state: Tensor | None = None

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
            weights = weights * self.mask[:, None]
        importance = self.scores.new_zeros(self.num_experts)
        return importance.index_add(0, self.experts.clamp_min(0).flatten(), weights.flatten())

    def entropy(self) -> Tensor:
        """(T,) nats: how undecided the gate was; from `probabilities` scaled to sum to one."""
        if self.probabilities is None:
            raise InputError("entropy: this routing has no probabilities; its router gives none")
        p = self.probabilities / self.probabilities.sum(-1, keepdim=True).clamp_min(1e-20)
        return torch.special.entr(p).sum(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Routing:
        """The same routing with `change` applied to every per-thing tensor (not to the losses)."""
        changed = {n: change(t) for n in _TENSORS if (t := getattr(self, n)) is not None}
        return replace(self, **changed)

    def to(self, *args, **kwargs) -> Routing:
        """Moved like `Tensor.to`, device only: dtypes are part of the record."""
        moved = self.map(lambda t: t.to(*args, **kwargs))
        losses = {n: v.to(*args, **kwargs) for n, v in self.losses.items()}
        state = None if self.state is None else self.state.to(*args, **kwargs)
        return replace(moved, losses=losses, state=state)

    def detach(self) -> Routing:
        """The same numbers without their autograd history."""
        losses = {n: v.detach() for n, v in self.losses.items()}
        state = None if self.state is None else self.state.detach()
        return replace(self.map(Tensor.detach), losses=losses, state=state)

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
        masks = [part.mask for part in parts]
        if any(mask is not None for mask in masks):
            masks = [
                torch.ones(len(part), dtype=torch.bool, device=part.experts.device)
                if mask is None
                else mask
                for part, mask in zip(parts, masks, strict=True)
            ]
        has_all = all(part.probabilities is not None for part in parts)
        return cls(
            scores=torch.cat([part.scores for part in parts]),
            experts=torch.cat([part.experts for part in padded]),
            weights=torch.cat([part.weights for part in padded]),
            probabilities=torch.cat([p.probabilities for p in parts]) if has_all else None,
            mask=torch.cat(masks) if masks[0] is not None else None,
        )

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
        if self.state is not None:
            named["state"] = self.state
        return {n: t.detach().contiguous() for n, t in named.items()}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Routing:
        """The record that `tensors` stored; raises InputError where a part is missing."""
        missing = {"scores", "experts", "weights"} - named.keys()
        if missing:
            raise InputError(f"not a routing record: {', '.join(sorted(missing))} missing")
        known = {f.name for f in fields(cls)}
        losses = {n.removeprefix("losses."): v for n, v in named.items() if n.startswith("losses.")}
        return cls(**{n: t for n, t in named.items() if n in known}, losses=losses)

    def save(self, path: str | Path) -> None:
        """Write the record as a safetensors file."""
        from safetensors.torch import save_file

        save_file(self.tensors(), path)

    @classmethod
    def read(cls, path: str | Path) -> Routing:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        return cls.from_tensors(load_file(path))
