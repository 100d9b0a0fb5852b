"""What a checkpoint folder says about its model: `config.json`, and `polypath.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from polypath.errors import InputError
from polypath.language.adopt import Native
from polypath.language.config import RoutedLayers
from polypath.language.families import Decoder
from polypath.language.folders import former
from polypath.language.hosting import Make
from polypath.language.merged import Merged
from polypath.language.shards import read_json

VERSION = 2
DESCRIPTION = "polypath.json"


Layer = RoutedLayers | Merged | Literal["adopted", "function"]


def layers_of(decoder: Decoder) -> dict[int, Layer]:
    """What each routed layer of a decoder is, by its index; layers of one stack are one object."""
    origins = decoder.host.origins
    return {index: _origin(origins.get(index)) for index in decoder.routed()}


def _origin(origin: Any) -> Layer:
    if isinstance(origin, RoutedLayers | Merged):
        return origin
    return "adopted" if isinstance(origin, Native) else "function"


def stacks_of(layers: Mapping[int, Layer]) -> list[list[int]]:
    """The indices of layers that were, or are to be, built together."""
    stacks: dict[int, list[int]] = {}
    for index, layer in sorted(layers.items()):
        if isinstance(layer, RoutedLayers):
            stacks.setdefault(id(layer), []).append(index)
    return list(stacks.values())


def write_description(folder: Path, layers: Mapping[int, Layer]) -> None:
    """Write what the layers are, and which belong together."""
    told = {index: _told(layer) for index, layer in layers.items()}
    values = {"version": VERSION, "layers": told, "stacks": stacks_of(layers)}
    text = json.dumps(values, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def _told(layer: Layer) -> Any:
    if isinstance(layer, Merged):
        return {"merged": layer.to_json()}
    return layer.to_json() if isinstance(layer, RoutedLayers) else layer


def read_description(path: Path, routed: Make | None) -> dict[int, Layer]:
    """The layers that a `polypath.json` describes, by their index; those of a stack one object."""
    values = read_json(path)
    version = values.get("version") if isinstance(values, dict) else None
    if version != VERSION:
        raise InputError(f"{path} has version {version!r}; this polypath reads version {VERSION}")
    layers = values.get("layers")
    if not isinstance(layers, dict) or not all(index.isdigit() for index in layers):
        raise InputError(f"{path}: its `layers` are not an object from indices to layers")
    for index, layer in layers.items():
        if layer == "function" and routed is None:
            raise InputError(
                f"{path}: a function made layer {index}; give it: from_pretrained(folder, routed)"
            )
        if not isinstance(layer, dict) and layer not in ("adopted", "function"):
            raise InputError(f"{path}: layer {index} is {layer!r:.40}; an object is right")
    described = {int(index): _described(path, layer) for index, layer in layers.items()}
    return described | _together(path, described, values.get("stacks"))


def _described(path: Path, layer: Any) -> Layer:
    if not isinstance(layer, dict):
        return layer
    try:
        if set(layer) == {"merged"}:
            return Merged.from_json(layer["merged"])
        return RoutedLayers.from_json(layer)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _together(path: Path, layers: Mapping[int, Layer], stacks: Any) -> dict[int, Layer]:
    """The layers of each stack as one object."""
    try:
        groups = [[(index, layers[index]) for index in stack] for stack in stacks]
    except (TypeError, KeyError):
        groups = []
    built = {i for i, layer in layers.items() if isinstance(layer, RoutedLayers)}
    if {index for group in groups for index, _ in group} != built or any(
        layer != group[0][1] for group in groups for _, layer in group
    ):
        raise InputError(f"{path}: its `stacks` are not lists of the indices of equal layers")
    return {index: group[0][1] for group in groups for index, _ in group}


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration in a checkpoint folder; code in the folder is never run."""
    if not folder.is_dir():
        hint = ""
        if former(folder).exists():
            hint = f"; an interrupted save left what it held in {former(folder)}"
        raise InputError(f"no folder {folder}{hint}")
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder} is not a checkpoint: it has no config.json")
    values = read_json(path)
    if not isinstance(values, dict) or "architectures" not in values:
        raise InputError(f"{path}: it does not name the model's `architectures`")
    with in_one_line(path):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def model_class(folder: Path, config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of the model that a configuration is for."""
    name = (config.architectures or ["none"])[0]
    kind = getattr(transformers, name, None)
    known = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if kind is None or not known or not isinstance(config, kind.config_class):
        raise InputError(
            f"{folder / 'config.json'}: transformers has no {config.model_type} model {name!r}"
        )
    return kind


@contextmanager
def in_one_line(where: Path) -> Iterator[None]:
    """Whatever transformers has to say about its files, as one InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{where}: transformers refuses it: {told:.300}") from error
