"""Models with routed layers on disk: folders of safetensors and JSON, never a pickle.

A model whose routed layers are all adopted, or that has none, is a plain transformers checkpoint.
Any other is one whose weights have the names of this library's layers, and a `polypath.json` that
says what they are: {"version": 2, "layers": {"0": RoutedLayers | {"merged": Merged} | "adopted" |
"function"}, "stacks": lists of the indices of layers that were attached together}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from types import MethodType
from typing import cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from polypath.errors import InputError
from polypath.language.adopt import looks
from polypath.language.config import RoutedLayers
from polypath.language.families import decoder_of
from polypath.language.folders import replaced
from polypath.language.hosting import Make, adopt_layers, native_layers, place, rebuild
from polypath.language.manifest import (
    DESCRIPTION,
    Layer,
    in_one_line,
    layers_of,
    model_class,
    read_config,
    read_description,
    stacks_of,
    write_description,
)
from polypath.language.merged import Merged
from polypath.language.shards import Shapes, check_experts, read_shapes, read_state
from polypath.routing import MoE, routed_layers

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*")
REPORT = "surgery.*"  # of the operation that made the checkpoint
OWN = ("config.json", "generation_config.json", DESCRIPTION, REPORT, *WEIGHTS)


def save_pretrained(
    model: PreTrainedModel,
    folder: str | Path,
    max_shard_size: int | str = "5GB",
    state_dict: Mapping[str, Tensor] | None = None,
    is_main_process: bool = True,
) -> None:
    """Write a model so that `from_pretrained` gives back the same logits, bit for bit.

    folder: replaced as a whole when everything is written, and not before; files in it that are not
        the model's, such as a tokenizer's, are kept.
    max_shard_size: bytes, or text such as "5GB"; larger weights become several files.
    state_dict: the model's own, gathered, where its parameters lie on several ranks.
    is_main_process: False on ranks that write nothing.
    A model whose routed layers are all adopted becomes a plain transformers checkpoint. Losses are
    described as they were attached.
    Raises InputError when the folder cannot be written or the model could not be loaded again.
    """
    if not is_main_process:
        return
    decoder = decoder_of(model)
    layers = layers_of(decoder)
    plain = all(layer == "adopted" for layer in layers.values())
    state = dict(model.state_dict() if state_dict is None else state_dict)
    if plain:
        native = _native_names(model)
        state = {native.get(name, name): tensor for name, tensor in state.items()}
    _check_loadable(model, {} if plain else layers, _shapes(state))
    for name in _repeated(model):
        state.pop(name, None)
    with replaced(Path(folder), is_own) as draft, _quiet():
        write = type(model).save_pretrained  # the model's own may be this function
        write(
            model,
            draft,
            state_dict=state,
            max_shard_size=max_shard_size,
            save_original_format=plain,
        )
        if not plain:
            write_description(draft, layers)


def from_pretrained(folder: str | Path, routed: Make | None = None) -> PreTrainedModel:
    """Read a model that `save_pretrained` wrote, or a plain transformers checkpoint.

    The routed layers that a plain checkpoint brings are adopted, see `attach`. The model is on the
    CPU, in evaluation mode, and has the dtype in which it was saved.
    routed: the function that was given to `attach`, for layers that a function made.
    Raises InputError for a folder that is not a whole checkpoint: files, tensors or sizes that are
    missing, unexpected or broken, weights in a pickle, an unknown router, a newer version.
    """
    folder = Path(folder)
    config = read_config(folder)
    shapes = read_shapes(folder)
    with _quiet():
        if (folder / DESCRIPTION).exists():
            model = _read_described(folder, config, shapes, routed)
        else:
            model = _read_plain(folder, config, shapes)
    if decoder_of(model).routed():
        save_here(model)
    return model.eval()


def save_here(model: PreTrainedModel) -> None:
    """Make `model.save_pretrained` the one above.

    That of transformers would write routed layers under names that nothing reads again.
    """
    vars(model)["save_pretrained"] = MethodType(save_pretrained, model)


def is_own(name: str) -> bool:
    """Whether a file of a checkpoint folder, by its name, is the model's and not its user's."""
    return any(fnmatch(name, pattern) for pattern in OWN)


def _names(model: PreTrainedModel) -> dict[int, str]:
    """The dotted names of the routed layers by their index."""
    names = {layer: name for name, layer in routed_layers(model).items()}
    return {index: names[layer] for index, layer in decoder_of(model).routed().items()}


def _native_names(model: PreTrainedModel) -> dict[str, str]:
    """From the names of adopted layers' tensors to those that transformers gives them."""
    decoder = decoder_of(model)
    native = {}
    for index, prefix in _names(model).items():
        layer, origin = decoder.routed()[index], decoder.host.origins[index]
        origin.check(layer)
        for own in layer.state_dict():
            native[f"{prefix}.{own}"] = f"{prefix}.{origin.name(own)}"
    return native


def _repeated(model: PreTrainedModel) -> set[str]:
    """The further names of tensors that several routed layers share; a file holds each once."""
    prefixes = tuple(f"{name}." for name in _names(model).values())
    known: set[int] = set()
    repeated = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.startswith(prefixes) and id(tensor) in known:
            repeated.add(name)
        known.add(id(tensor))
    return repeated


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_loadable(model: PreTrainedModel, layers: Mapping[int, Layer], shapes: Shapes) -> None:
    """Raise InputError when `from_pretrained` would not build what the model is."""
    known = {index: layer for index, layer in layers.items() if layer != "function"}
    with torch.device("meta"):
        blank = _blank(type(model), model.config, known, None)
    for index in known:
        layer, wanted = decoder_of(model).routed().get(index), decoder_of(blank).routed()[index]
        if not isinstance(layer, MoE) or looks(layer) != looks(wanted):
            raise InputError(
                f"save_pretrained: layer {index} was changed since it was attached; "
                "put it in with attach(model, lambda index: layer)"
            )
    made = tuple(_names(model)[index] + "." for index in layers.keys() - known.keys())
    expected, found = (
        {name: shape for name, shape in every.items() if not name.startswith(made)}
        for every in (_shapes(blank.state_dict()), shapes)
    )
    _compare(expected, found, "save_pretrained: the model does not fit its configuration")


def _compare(expected: Shapes, found: Shapes, where: str | Path) -> None:
    """Raise InputError unless both have the same names and shapes."""
    for problem, names in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
    ):
        if names:
            raise InputError(f"{where}: {problem} tensors: {_some(names)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(f"{where}: {name} is {found[name]}; {shape} is right")


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + f" and {len(names) - 3} more" * (len(names) > 3)


def _blank(
    kind: type[PreTrainedModel],
    config: PretrainedConfig,
    layers: Mapping[int, Layer],
    routed: Make | None,
) -> PreTrainedModel:
    """A model with the described layers, its parameters not initialised."""
    with no_init_weights():
        model = kind._from_config(deepcopy(config), dtype=config.dtype)
        decoder = decoder_of(model)
        for index, layer in layers.items():
            if not index < len(decoder.layers):
                raise InputError(
                    f"no layer {index}; the model has layers 0 to {len(decoder.layers) - 1}"
                )
            if layer == "function" and routed is not None:
                place(decoder, routed, [index])
            elif isinstance(layer, Merged):
                rebuild(decoder, index, layer)
            elif layer == "adopted" and index in native_layers(decoder):
                adopt_layers(decoder, [index])
            elif isinstance(layer, str):
                raise InputError(f"layer {index} of the model has no experts to adopt")
        for stack in stacks_of(layers):
            place(decoder, cast(RoutedLayers, layers[stack[0]]), stack)
    model.tie_weights()
    return model


def _read_plain(folder: Path, config: PretrainedConfig, shapes: Shapes) -> PreTrainedModel:
    check_experts(shapes, folder)
    kind = model_class(folder, config)
    with in_one_line(folder):
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, in one line
        )
    for problem in ("missing", "unexpected"):
        if names := info[f"{problem}_keys"]:
            raise InputError(f"{folder}: {problem} tensors: {_some(set(names))}")
    for name, found, right in sorted(info["mismatched_keys"]):
        raise InputError(f"{folder}: {name} is {tuple(found)}; {tuple(right)} is right")
    decoder = decoder_of(model)
    adopt_layers(decoder, native_layers(decoder))
    return model


def _read_described(
    folder: Path, config: PretrainedConfig, shapes: Shapes, routed: Make | None
) -> PreTrainedModel:
    layers = read_description(folder / DESCRIPTION, routed)
    kind = model_class(folder, config)
    with in_one_line(folder / "config.json"):
        try:
            model = _blank(kind, config, layers, routed)
        except InputError as error:
            raise InputError(f"{folder / DESCRIPTION}: {error}") from error
    # A file holds one name of the parameters that have several.
    tied: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), []).append(name)
    expected = {
        next((name for name in names if name in shapes), names[0]): names for names in tied.values()
    }
    every = _shapes(model.state_dict())
    _compare({name: every[name] for name in expected}, shapes, folder)
    model.load_state_dict(read_state(folder), strict=False, assign=True)
    model.tie_weights()
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no reports of transformers: what is wrong is told in one line here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
