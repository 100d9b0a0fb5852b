"""The safetensors files of a checkpoint folder: one, or several with an index."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polypath.errors import InputError
from polypath.routing.files import read_tensors

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Shapes = dict[str, tuple[int, ...]]

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises InputError when it is absent or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error


def read_shapes(folder: Path) -> Shapes:
    """The shape of every tensor of a checkpoint, from the heads of its files.

    Raises InputError when a file is missing, is truncated, or does not hold what the index says.
    """
    found: dict[Path, Shapes] = {path: _head(path) for path in files_of(folder)}
    if (folder / INDEX).exists():
        for name, file in _index(folder).items():
            if name not in found[folder / file]:
                raise InputError(f"{folder / file}: {name} is not in it; {INDEX} says that it is")
    return {name: shape for shapes in found.values() for name, shape in shapes.items()}


def read_state(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, on the CPU; raises InputError as `read_shapes` does."""
    state: dict[str, Tensor] = {}
    for path in files_of(folder):
        # A clone lies where torch puts it. In a file tensors lie at any address, and products of
        # matrices at odd addresses round differently.
        state |= {name: tensor.clone() for name, tensor in read_tensors(path)[0].items()}
    return state


def check_experts(shapes: Shapes, folder: Path) -> None:
    """Raise InputError when a tensor is missing or odd that every expert of a layer has.

    transformers stacks them, and has no clear words for one that does not fit.
    """
    layers: dict[str, dict[str, dict[int, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        if split := _EXPERT.fullmatch(name):
            layer, index, part = split.groups()
            layers.setdefault(layer, {}).setdefault(part, {})[int(index)] = shape
    for layer, parts in layers.items():
        count = 1 + max(index for experts in parts.values() for index in experts)
        for part, experts in parts.items():
            usual = Counter(experts.values()).most_common(1)[0][0]
            for index in range(count):
                found = experts.get(index)
                if found != usual:
                    problem = "is missing" if found is None else f"is {found}"
                    raise InputError(
                        f"{folder}: {layer}.{index}.{part} {problem}; "
                        f"those of other experts are {usual}"
                    )


def files_of(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, all of them there."""
    if (folder / INDEX).exists():
        files = [folder / name for name in sorted(set(_index(folder).values()))]
        for file in files:
            if not file.exists():
                raise InputError(f"{file} is missing; {INDEX} names it")
        return files
    if (folder / ONE).exists():
        return [folder / ONE]
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise InputError(
            f"{folder} has its weights in {pickled[0]}: a pickle can run code and is never loaded; "
            f"convert it to {ONE}"
        )
    raise InputError(f"{folder} has no weights; {ONE} or {INDEX} is needed")


def _index(folder: Path) -> dict[str, str]:
    """From tensors to the files that hold them."""
    index = read_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or any(Path(str(f)).name != f for f in names.values()):
        raise InputError(f"{folder / INDEX}: its weight_map does not map tensors to file names")
    return names


def places(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """The dtype, the shape and the first byte of every tensor of a file.

    Raises InputError when the file is not whole, or has a dtype that is not known.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(length))
        names = {name: told for name, told in head.items() if name != "__metadata__"}
        end = max((told["data_offsets"][1] for told in names.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError("its length is not what its head says")
        return {
            name: (
                DTYPES[told["dtype"]],
                tuple(told["shape"]),
                8 + length + told["data_offsets"][0],
            )
            for name, told in names.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def read_into(path: Path, start: int, target: Tensor) -> None:
    """Fill a contiguous tensor with the bytes of a file from `start` on; nothing else is held."""
    view = _bytes(target)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise InputError(f"{path} ended early")
            done += count


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.detach().view(-1).view(torch.uint8).numpy().data)


class ShardWriter:
    """Files of a checkpoint folder, one for each call of `add`, and their index at the end."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.names: dict[str, str] = {}
        self.bytes = 0

    def add(self, like: Mapping[str, Tensor], values: Iterable[Tensor]) -> None:
        """Write one more file, tensor by tensor; each may be forgotten before the next is made.

        like: dtypes and shapes by name; values in the same order.
        """
        number = len(set(self.names.values())) + 1
        name = f"model-{number:05d}-of-{self.count:05d}.safetensors"
        head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for key, tensor in like.items():
            start, end = end, end + tensor.numel() * tensor.element_size()
            dtype = next(code for code, known in DTYPES.items() if known == tensor.dtype)
            shape = list(tensor.shape)
            head[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        with (self.folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for (key, wanted), tensor in zip(like.items(), values, strict=True):
                if (wanted.shape, wanted.dtype) != (tensor.shape, tensor.dtype):
                    raise InputError(f"{name}: {key} is {tuple(tensor.shape)} {tensor.dtype}")
                if tensor.numel():
                    file.write(_bytes(tensor.contiguous()))
                del tensor
        self.names |= dict.fromkeys(like, name)
        self.bytes += end

    def close(self) -> None:
        """Write the index; raises InputError when there are more or fewer files than was said."""
        found = len(set(self.names.values()))
        if found != self.count:
            raise InputError(f"{self.folder}: {found} files of {self.count} were written")
        index = {"metadata": {"total_size": self.bytes}, "weight_map": self.names}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _head(path: Path) -> Shapes:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error
