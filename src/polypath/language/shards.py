"""The safetensors files of a checkpoint folder: one, or several with an index."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from polypath.errors import InputError
from polypath.routing.files import read_tensors

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

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
    found: dict[Path, Shapes] = {path: _head(path) for path in _files(folder)}
    if (folder / INDEX).exists():
        for name, file in _index(folder).items():
            if name not in found[folder / file]:
                raise InputError(f"{folder / file}: {name} is not in it; {INDEX} says that it is")
    return {name: shape for shapes in found.values() for name, shape in shapes.items()}


def read_state(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, on the CPU; raises InputError as `read_shapes` does."""
    state: dict[str, Tensor] = {}
    for path in _files(folder):
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


def _files(folder: Path) -> list[Path]:
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


def _head(path: Path) -> Shapes:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error
