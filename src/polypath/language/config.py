"""What a routed layer is, in plain values: to write down, to save beside a checkpoint, to build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from polypath.errors import InputError, unknown
from polypath.experts.feedforward import Kind
from polypath.language.options import OPTIONS, READS
from polypath.routing import (
    AuxiliaryLoss,
    Coupling,
    Entropy,
    Importance,
    LayerLoss,
    LoadBalance,
    Orthogonality,
    RouterZ,
)

LOSSES: dict[str, Callable[[float], AuxiliaryLoss]] = {
    "load_balance": LoadBalance,
    "sequence_balance": partial(LoadBalance, over="sequence"),
    "importance": Importance,
    "router_z": RouterZ,
    "entropy": Entropy,
}
LAYER_LOSSES: dict[str, type[LayerLoss]] = {
    "coupling": Coupling,
    "orthogonality": Orthogonality,
}


@dataclass(frozen=True)
class RoutedLayers:
    """What the routed layers of a model are; `build_stack` builds them.

    router: who chooses, a name in `polypath.language.options.READS`; see `polypath.routing`.
    num_experts: experts in each layer.
    k: experts per token; their mean number for "expert-choice"; "soft" uses all.
    hidden: width of each expert, or one for every layer; the width of the host's own feed-forward
        layer when None.
    kind: the experts' network, see `FeedForwardExperts`.
    bias: the experts' linear maps have biases.
    shared_hidden: width of one more expert that serves every token, or one for every layer; 0 for
        none.
    scorer: "linear", "affine", "cosine", "mlp" or "noisy".
    gate: "softmax-chosen", "softmax", "sigmoid" or "hard", see `TopKRouter`; the last two are for
        "top-k" and "reuse" only.
    scale: multiplies the gate's weights.
    capacity: an expert drops what exceeds capacity · T · k / E tokens; None for no limit; "top-k".
    bias_rate: rate of a selection bias that balances without a loss; None for none; for "top-k".
    losses: weights of auxiliary losses by name: load_balance, sequence_balance (within each
        sequence), importance, router_z, entropy; and of losses on the parameters of a layer:
        coupling, orthogonality, where a mapping gives the weight and more, as
        {"coupling": {"weight": 1.0, "alpha": 0.5}}. When None: load_balance 0.01 for a "top-k"
        router without bias_rate, nothing for others.
    options: what this router alone has, see `polypath.language.options`.
    Raises InputError for an unknown name, a wrong type, a number out of range, or a value that the
    router does not read.
    """

    router: str = "top-k"
    num_experts: int = 8
    k: int = 2
    hidden: int | Sequence[int] | None = None
    kind: Kind = "swiglu"
    bias: bool = False
    shared_hidden: int | Sequence[int] = 0
    scorer: Literal["linear", "affine", "cosine", "mlp", "noisy"] = "linear"
    gate: Literal["softmax-chosen", "softmax", "sigmoid", "hard"] = "softmax-chosen"
    scale: float = 1.0
    capacity: float | None = None
    bias_rate: float | None = None
    losses: Mapping[str, Any] | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.router not in READS:
            raise InputError(f"RoutedLayers: {unknown('router', str(self.router), READS)}")
        hints = get_type_hints(type(self))
        for f in fields(self):
            _check(f.name, getattr(self, f.name), hints[f.name])
        self.own_options()
        balanced = self.router != "top-k" or self.bias_rate is not None
        usual = {} if balanced else {"load_balance": 0.01}
        object.__setattr__(self, "losses", dict(usual if self.losses is None else self.losses))
        self._check_losses()
        self._check_ranges()
        self._check_reads()

    def _check_losses(self) -> None:
        for name, weight in (self.losses or {}).items():
            if name not in (known := LOSSES | LAYER_LOSSES):
                raise InputError(f"RoutedLayers.losses: {unknown('loss', name, known)}")
            if name in LAYER_LOSSES and isinstance(weight, Mapping):
                _check_settings(name, weight)
            else:
                _check(f"losses[{name!r}]", weight, float)

    def _check_ranges(self) -> None:
        at_least = {"num_experts": 1, "k": 1, "hidden": 1, "shared_hidden": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            every = value if isinstance(value, Sequence) else [value]
            if any(one is not None and one < least for one in every):
                raise InputError(f"RoutedLayers.{name}={value}; at least {least} is needed")
        for name in ("capacity", "bias_rate", "scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"RoutedLayers.{name}={value}; a positive number or None is right")
        if "k" in READS[self.router] and self.k > self.num_experts:
            raise InputError(
                f"RoutedLayers: k={self.k} of num_experts={self.num_experts}; "
                "k must be ≤ num_experts"
            )

    def _check_reads(self) -> None:
        options = set().union(*READS.values()) - READS[self.router]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in options and value and value != f.default:
                raise InputError(
                    f"RoutedLayers: a {self.router!r} router has no {f.name}; "
                    f"{f.name}={value!r} was given"
                )

    def own_options(self) -> Any:
        """The options of this router, an instance of OPTIONS[router], or None where it has none."""
        given = dict(self.options or {})
        kind = OPTIONS.get(self.router)
        if kind is None:
            if given:
                raise InputError(f"RoutedLayers.options: a {self.router!r} router has none")
            return None
        hints = get_type_hints(kind)
        for name, value in given.items():
            if name not in hints:
                raise InputError(f"RoutedLayers.options: {unknown('option', name, hints)}")
            _check(f"options[{name!r}]", value, hints[name])
        return kind(**given)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> RoutedLayers:
        """What `to_json` gave; raises InputError for anything else."""
        if not isinstance(value, dict):
            raise InputError(f"RoutedLayers: expected an object, not {value!r:.60}")
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                raise InputError(f"RoutedLayers: {unknown('field', name, known)}")
        return cls(**value)


def _check_settings(loss: str, given: Mapping[str, Any]) -> None:
    """InputError unless `given` are arguments of a loss on the parameters of a layer."""
    hints = get_type_hints(LAYER_LOSSES[loss].__init__)
    del hints["return"]
    for name, value in given.items():
        if name not in hints:
            raise InputError(f"RoutedLayers.losses[{loss!r}]: {unknown('setting', name, hints)}")
        _check(f"losses[{loss!r}][{name!r}]", value, hints[name])
    LAYER_LOSSES[loss](**given)  # says which number is out of range


def _check(name: str, value: Any, hint: Any) -> None:
    """InputError unless `value` is of type `hint`; a whole number will do for a float."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in parts:
            raise InputError(f"RoutedLayers: {unknown(name, str(value), parts)}")
        return
    kinds = [get_origin(part) or part for part in parts] if origin is UnionType else [hint]
    allowed = (*kinds, int) if float in kinds else tuple(kinds)
    wrong = isinstance(value, bool) and bool not in kinds
    if Sequence in kinds and isinstance(value, Sequence):
        wrong = isinstance(value, str) or not all(type(one) is int for one in value)
    if wrong or not isinstance(value, allowed):
        right = " or ".join(_WORDS[kind] for kind in kinds)
        raise InputError(f"RoutedLayers.{name}: expected {right}, not {value!r:.60}")


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a name",
    bool: "true or false",
    Mapping: "a mapping of names to numbers",
    Sequence: "a list of whole numbers",
    NoneType: "None",
}
