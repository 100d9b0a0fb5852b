"""Experts on disk: some of each layer in memory, others fetched while the layers before compute.

What is known ahead is announced: the experts of the next pass, the same in all layers. The caches
decide at once who comes and who goes; a thread then moves the bytes, each load as soon as nothing
computes any more with what lies in its place. So hits and misses do not depend on timing.
"""

from __future__ import annotations

import os
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.experts.activations import ACTIVATIONS
from polypath.experts.feedforward import FeedForward, FeedForwardExperts
from polypath.files import replace_file
from polypath.routing import Routing
from polypath.routing.dispatch import dispatch
from polypath.routing.dispatch.memory import on_huge_pages
from polypath.routing.files import write_tensors
from polypath.serving.caches import ExpertCache, Load, Slots, Visit

WEIGHTS = ("inner", "inner_bias", "outer", "outer_bias")
"""An expert's tensors in a file, in the order in which `FeedForward` reads them."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def save_experts(folder: str | Path, banks: Iterable[FeedForwardExperts]) -> None:
    """Write the bank of each layer, in order, to a file of its own, expert by expert.

    folder: made if it is not there; "layer-000.safetensors" holds "0.inner" (2F, D) or (F, D) and
        "0.outer" (D, F), with "0.inner_bias" and "0.outer_bias" if there are any, for each expert.
        Layers beyond these that a deeper model left there are removed.
    Raises InputError for an activation without a name, and when the disk refuses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layer = -1
    for layer, bank in enumerate(banks):
        activation = bank.network.activation
        kind = next((name for name, known in ACTIVATIONS.items() if known == activation), None)
        if kind is None:
            raise InputError(
                f"save_experts: layer {layer} has the activation {activation}; "
                f"it has to be one of {', '.join(ACTIVATIONS)}"
            )
        stacks = {n: w for n, w in zip(WEIGHTS, bank.weights(), strict=True) if w is not None}
        tensors = {f"{e}.{n}": own for n, stack in stacks.items() for e, own in enumerate(stack)}
        write = partial(write_tensors, tensors=tensors, facts={"kind": kind})
        replace_file(_path(folder, layer), write)
    while (left := _path(folder, layer := layer + 1)).exists():
        left.unlink()


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:03}.safetensors"


class _File:
    """What the file of one layer has where; raises InputError where that is not experts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        try:
            with path.open("rb") as file:
                place = 8 + struct.unpack("<Q", file.read(8))[0]
            with safe_open(path, framework="pt") as tensors:
                kind = (tensors.metadata() or {})["kind"]
                for name in tensors.offset_keys():  # one behind the other, without gaps
                    part = tensors.get_slice(name)
                    found[name] = part.get_dtype(), tuple(part.get_shape())
                    size = torch.Size(part.get_shape()).numel() * DTYPES[found[name][0]].itemsize
                    self.places[name] = place, size
                    place += size
            self.network = FeedForward(ACTIVATIONS[kind])
            parts = {n: found[f"0.{n}"] for n in WEIGHTS if f"0.{n}" in found}
            ((dtype,), self.dim) = {d for d, _ in parts.values()}, parts["outer"][1][0]
        except (OSError, SafetensorError, struct.error, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a whole file of save_experts: {error}") from error
        self.dtype = DTYPES[dtype]
        self.shapes = {name: shape for name, (_, shape) in parts.items()}
        self.num_experts = len(found) // len(parts)
        if found != {f"{e}.{n}": p for e in range(self.num_experts) for n, p in parts.items()}:
            raise InputError(f"{path}: its experts differ in their tensors, shapes or dtypes")


class _Layer:
    """The slots of one layer in memory, and the file that fills them."""

    def __init__(self, file: _File, slots: Slots) -> None:
        self.slots = slots
        self.network = file.network
        self.weights = [
            on_huge_pages(torch.empty(slots.count, *file.shapes[name], dtype=file.dtype))
            if name in file.shapes
            else None
            for name in WEIGHTS
        ]
        self.announced: deque[list[Visit]] = deque()
        self._places = file.places
        self._file = file.path.open("rb", buffering=0)
        self.close = self._file.close

    def read(self, load: Load, page_cache: bool) -> None:
        """Fill a slot with an expert."""
        for name, stack in zip(WEIGHTS, self.weights, strict=True):
            if stack is None:
                continue
            place, size = self._places[f"{load.expert}.{name}"]
            left = memoryview(stack[load.slot].view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            self._file.seek(place)
            while len(left):
                count = self._file.readinto(left)
                if not count:
                    raise OSError(f"{self._file.name} ends within expert {load.expert}")
                left = left[count:]
            if not page_cache and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), place, size, os.POSIX_FADV_DONTNEED)


class _Loader:
    """Carries out loads: in a thread of its own, or, without one, when they are waited for."""

    def __init__(self, layers: Sequence[_Layer], threaded: bool, page_cache: bool) -> None:
        self.waited = 0.0
        self._layers = layers
        self._page_cache = page_cache
        self._loads: list[tuple[_Layer, Load]] = []
        self._error: Exception | None = None
        self._closed = False
        self._change = threading.Condition()
        self._thread = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="loads experts", daemon=True)
            self._thread.start()

    def add(self, layer: _Layer, loads: Iterable[Load]) -> None:
        if self._thread is not None:
            with self._change:
                self._loads.extend((layer, load) for load in loads)
                self._change.notify_all()

    def wait(self, layer: _Layer, loads: Sequence[Load]) -> None:
        """Until these are done; raises InputError if they cannot be."""
        start = time.perf_counter()
        if self._thread is None:
            for load in loads:
                self._carry_out(layer, load)
        else:
            with self._change:
                self._change.wait_for(lambda: self._stopped or all(load.done for load in loads))
        self.waited += time.perf_counter() - start
        self.check()

    def check(self) -> None:
        """Raise InputError where nothing more will be loaded."""
        if self._error is not None:
            raise InputError(f"experts cannot be read: {self._error}") from self._error
        if self._closed:
            raise InputError("the store of these experts is closed; open it anew")

    def leave(self, layer: _Layer, visits: int) -> None:
        """So many more visits of a layer are over."""
        with self._change:
            layer.slots.over += visits
            self._change.notify_all()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        for layer in self._layers:
            layer.close()

    @property
    def _stopped(self) -> bool:
        return self._closed or self._error is not None

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopped or self._ready())
                following = self._ready()
            if self._stopped or following is None:
                return
            self._carry_out(*following)

    def _ready(self) -> tuple[_Layer, Load] | None:
        """The first load whose slot nobody needs any more as it is."""
        found = ((layer, load) for layer, load in self._loads if layer.slots.over >= load.after)
        return next(found, None)

    def _carry_out(self, layer: _Layer, load: Load) -> None:
        if load.done or self._stopped:
            return
        try:
            layer.read(load, self._page_cache)
        except Exception as error:  # whatever it is: who waits has to hear of it
            self._error = error
        with self._change:
            load.done = self._error is None
            self._loads = [pair for pair in self._loads if pair[1] is not load]
            self._change.notify_all()


class ExpertStore:
    """The experts of all layers on disk, `capacity` of each layer in memory, and their banks.

    folder: what `save_experts` wrote. policy: who leaves, see `ExpertCache`; each layer has a cache
    of its own. prefetch: a thread loads what was announced; without, loads happen when a layer
    needs them. spare: with prefetch, so many places of each layer beside `capacity`, for experts on
    their way. page_cache: whether the system may keep in memory what was read; False, where the
    system can be told, bounds memory, and each load then comes from the disk.
    Use it in a `with` block, or close it. One thread at a time may call it and its banks.
    Raises InputError for files that are missing or broken, and as ExpertCache does.
    """

    def __init__(
        self,
        folder: str | Path,
        capacity: int,
        policy: str = "belady",
        prefetch: bool = True,
        spare: int = 1,
        page_cache: bool = True,
    ) -> None:
        folder = Path(folder)
        if spare < 0:
            raise InputError(f"ExpertStore: spare={spare}; 0 or more places are needed")
        count = len(list(folder.glob("layer-*.safetensors")))
        files = [_File(_path(folder, layer)) for layer in range(count)]
        sizes = {(file.num_experts, file.dim, file.dtype) for file in files}
        if len(sizes) != 1:
            found = f"layers of {', '.join(map(str, sizes))}" if sizes else "no layers"
            raise InputError(
                f"{folder}: {found}; layers of the same experts, width and dtype are needed, as "
                "save_experts writes them"
            )
        ((self.num_experts, self.dim, self.dtype),) = sizes
        spare = spare if prefetch else 0
        slots = [Slots(ExpertCache(capacity, policy), spare) for _ in files]
        self._layers = [_Layer(file, own) for file, own in zip(files, slots, strict=True)]
        self._loader = _Loader(self._layers, prefetch, page_cache)
        self.close = weakref.finalize(self, self._loader.close)

    def __enter__(self) -> ExpertStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def banks(self) -> list[DiskExperts]:
        """A bank for each layer, in order."""
        return [DiskExperts(self, layer) for layer in range(len(self._layers))]

    def announce(self, experts: Tensor | Iterable[int], later: Iterable[int] = ()) -> None:
        """Say which experts the tokens of a pass need that was not announced yet.

        Every layer serves announced passes in this order. experts: of the pass's tokens, the same
        in all layers, each as often as it comes; -1 is nobody. later: those of tokens that wait
        behind, in the order in which they will be served: all of the future that "belady" knows.
        Raises InputError for experts that there are not, and where nothing can be loaded.
        """
        self._loader.check()
        wanted, known = _unique(experts), list(later)
        strange = [e for e in [*wanted, *known] if not 0 <= e < self.num_experts]
        if strange:
            raise InputError(f"announce: expert {strange[0]} of {self.num_experts}")
        for layer in self._layers:
            layer.slots.cache.forget()
            layer.slots.cache.foresee(known)
            layer.announced.append(self._plan(layer, wanted))

    def withdraw(self) -> None:
        """What was announced and a layer has not served yet will not come there."""
        for layer in self._layers:
            self._loader.leave(layer, sum(map(len, layer.announced)))
            layer.announced.clear()

    @property
    def hits(self) -> int:
        """In all layers; an expert counts once for each pass and layer."""
        return sum(layer.slots.cache.hits for layer in self._layers)

    @property
    def misses(self) -> int:
        """As `hits`; each is a load."""
        return sum(layer.slots.cache.misses for layer in self._layers)

    @property
    def waited(self) -> float:
        """Seconds that layers waited for loads."""
        return self._loader.waited

    def serve(self, index: int, x: Tensor, routing: Routing) -> Tensor:
        """What the experts of a layer make of x (T, D), (T, D); a bank checks what it is given."""
        layer, y = self._layers[index], None
        visits = self._visits(index, _unique(routing.experts))
        left = len(visits)
        try:
            for visit in visits:
                self._loader.wait(layer, visit.loads)
                part = dispatch(
                    x, _local(routing, visit.slots, layer), layer.network, layer.weights
                )
                y = part if y is None else y + part
                self._loader.leave(layer, 1)
                left -= 1
        finally:
            self._loader.leave(layer, left)
        return torch.zeros_like(x) if y is None else y

    def _visits(self, index: int, experts: list[int]) -> list[Visit]:
        """How a layer serves these experts: as was announced, or else as is decided now."""
        self._loader.check()
        layer = self._layers[index]
        if not layer.announced:
            return self._plan(layer, experts)
        announced = {expert for visit in layer.announced[0] for expert in visit.slots}
        if not announced.issuperset(experts):
            raise InputError(
                f"layer {index} needs experts {experts}, and {sorted(announced)} were announced; "
                "passes run in the order in which they are announced"
            )
        return layer.announced.popleft()

    def _plan(self, layer: _Layer, experts: list[int]) -> list[Visit]:
        visits, loads = layer.slots.plan(experts)
        self._loader.add(layer, loads)
        return visits


class DiskExperts(nn.Module):
    """A bank of feed-forward experts on disk, for `MoE`: what was stored, to serve, not to train.

    store: an open one. layer: which of its layers, from 0.
    Raises InputError, when it is called, for sizes, dtypes and devices that are not the store's,
    where gradients are asked for, for experts other than announced, and when they cannot be read.
    """

    def __init__(self, store: ExpertStore, layer: int) -> None:
        super().__init__()
        self.store = store
        self.layer = layer

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D), routing over T things to y (T, D)."""
        store = self.store
        if routing.num_experts != store.num_experts or x.shape[-1] != store.dim:
            raise InputError(
                f"a routing over {routing.num_experts} experts and things of width {x.shape[-1]} "
                f"for experts on disk, {store.num_experts} of width {store.dim}"
            )
        lowered = torch.is_autocast_enabled(x.device.type)
        if x.device.type != "cpu" or (x.dtype != store.dtype and not lowered):
            raise InputError(
                f"things in {x.dtype} on {x.device} for experts on disk, in {store.dtype} on cpu"
            )
        if torch.is_grad_enabled() and (x.requires_grad or routing.weights.requires_grad):
            raise InputError("experts on disk pass no gradients on; use torch.no_grad()")
        return store.serve(self.layer, x, routing)

    def extra_repr(self) -> str:
        return f"layer {self.layer}, {self.store.num_experts} × {self.store.dim}, on disk"


def _unique(experts: Tensor | Iterable[int]) -> list[int]:
    """Each expert once, ascending, without -1."""
    numbers = experts.unique().tolist() if isinstance(experts, Tensor) else experts
    return sorted(set(numbers) - {-1})


def _local(routing: Routing, slots: Mapping[int, int], layer: _Layer) -> Routing:
    """The part of a routing that these slots serve, over slots instead of experts."""
    table = torch.full((routing.num_experts + 1,), -1)  # the last is what -1 finds
    table[list(slots)] = torch.tensor(list(slots.values()))
    experts = table[routing.experts]
    scores = routing.scores.new_zeros(()).expand(len(routing), layer.slots.count)
    return Routing(scores, experts, routing.weights.masked_fill(experts < 0, 0.0))
