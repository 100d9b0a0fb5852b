"""A checkpoint on disk read layer by layer, so that it may be larger than memory."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from polypath.errors import InputError
from polypath.experts.layouts import PROJECTIONS
from polypath.language.elastic import SubModel
from polypath.language.extract import cut_config
from polypath.language.families import Decoder, decoder_of
from polypath.language.manifest import DESCRIPTION, model_class, read_config
from polypath.language.shards import check_experts, files_of, places, read_into

# Families whose layers read nothing but what the layer below wrote, and places.
CHAINED = ("llama", "qwen3", "olmoe", "mixtral", "qwen3_moe", "deepseek_v3")

# What the files of old checkpoints call a block, and transformers' modules.
RENAMED = {"block_sparse_moe": "mlp"}

_MMAP_THRESHOLD = -3  # glibc's malloc.h

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")


class Pieces:
    """A plain checkpoint folder of a decoder, whose tensors are read when they are asked for.

    config: of the model. blank: the whole model, without memory for its parameters.
    Raises InputError for a broken folder, one that polypath wrote, or a family whose layers cannot
    be run one by one.
    """

    def __init__(self, folder: Path) -> None:
        _give_back()
        self.folder = folder
        self.config: PretrainedConfig = read_config(folder)
        if (folder / DESCRIPTION).exists():
            raise InputError(f"{folder}: its layers are routed by polypath already")
        if self.config.model_type not in CHAINED:
            raise InputError(
                f"{folder}: {self.config.model_type} cannot be worked layer by layer; "
                f"{', '.join(CHAINED)} can"
            )
        self.kind = model_class(folder, self.config)
        self._places: dict[str, tuple[Path, torch.dtype, tuple[int, ...], int]] = {}
        for path in files_of(folder):
            for name, (dtype, shape, start) in places(path).items():
                self._places[_renamed(name)] = (path, dtype, shape, start)
        check_experts({name: told[2] for name, told in self._places.items()}, folder)
        with torch.device("meta"):
            self.blank: PreTrainedModel = self.kind._from_config(
                deepcopy(self.config), dtype=self.dtype
            )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights on disk."""
        dtypes = [dtype for _, dtype, shape, _ in self._places.values() if len(shape) > 1]
        return max(set(dtypes), key=dtypes.count)

    @property
    def decoder(self) -> Decoder:
        return decoder_of(self.blank)

    @property
    def prefix(self) -> str:
        """The dotted name of the decoder's list of layers."""
        layers = self.decoder.layers
        return next(name for name, module in self.blank.named_modules() if module is layers)

    @property
    def table(self) -> str:
        """The dotted name of the embedding of tokens."""
        inner = self.blank.get_input_embeddings()
        return next(name for name, module in self.blank.named_modules() if module is inner)

    def names(self) -> list[str]:
        """The model's own tensors that lie outside of its layers, and that the files have."""
        inside = f"{self.prefix}."
        return [name for name in self._places if not name.startswith(inside)]

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the model; raises InputError when it is not there."""
        target = torch.empty(self._place(name)[2], dtype=self._place(name)[1])
        self._read(name, target)
        return target

    def shape(self, name: str) -> Tensor:
        """A tensor without memory, as the files have it."""
        _, dtype, shape, _ = self._place(name)
        return torch.empty(shape, dtype=dtype, device="meta")

    def like(self, name: str, blank: Tensor) -> Tensor:
        """A tensor by its name in the model, in the shape and dtype of one without memory."""
        target = torch.empty(blank.shape, dtype=blank.dtype)
        self.read(name, target)
        return target

    def fill(
        self, module: nn.Module, path: str, name: Callable[[str], str] = lambda own: own
    ) -> None:
        """Read the tensors of a module that stands at a dotted path of the model.

        name: from the module's own names to those that they have at that path in the files.
        Parameters without memory get some. Raises InputError when a tensor is missing or misfits.
        """
        for own, tensor in module.state_dict(keep_vars=True).items():
            target = remembered(module, own) if tensor.device.type == "meta" else tensor
            self.read(f"{path}.{name(own)}", target)

    def read(self, name: str, target: Tensor) -> None:
        """Read a tensor by its name in the model into one of the same shape.

        Experts that lie apart in the files are read into their places in a stack.
        """
        if name in self._places:
            self._read(name, target.detach())
            return
        stack, _, last = name.rpartition(".")
        parts = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}.get(last)
        found = self._experts(stack) if parts else {}
        if not parts or len(found) != len(target):
            raise InputError(f"{self.folder}: {name} is missing")
        for expert, own in found.items():
            for part, rows in zip(parts, target.detach()[expert].chunk(len(parts)), strict=True):
                self._read(own[part], rows)

    def _experts(self, stack: str) -> dict[int, dict[str, str]]:
        """The names of each expert's matrices, by the field's names for them."""
        found: dict[int, dict[str, str]] = {}
        for name in self._places:
            match = _EXPERT.fullmatch(name) if name.startswith(stack) else None
            if match and match[1] == stack:
                own = PROJECTIONS.get(match[3], match[3])
                found.setdefault(int(match[2]), {})[own] = name
        return found

    def _place(self, name: str) -> tuple[Path, torch.dtype, tuple[int, ...], int]:
        if name not in self._places:
            raise InputError(f"{self.folder}: {name} is missing")
        return self._places[name]

    def _read(self, name: str, target: Tensor) -> None:
        path, dtype, shape, start = self._place(name)
        if shape != tuple(target.shape):
            raise InputError(f"{self.folder}: {name} is {shape}; {tuple(target.shape)} is right")
        if dtype == target.dtype and target.is_contiguous():
            read_into(path, start, target)
        else:
            own = torch.empty(shape, dtype=dtype)
            read_into(path, start, own)
            target.copy_(own)

    def layer_model(self, index: int) -> PreTrainedModel:
        """Layer `index` as a model of its own, with its weights, and next to no vocabulary."""
        config: Any = deepcopy(self.config)
        cut_config(config, SubModel((index,)), 0, native=False)
        config.vocab_size, config.pad_token_id, config.tie_word_embeddings = 1, None, True
        with no_init_weights():
            model = self.kind._from_config(config, dtype=self.dtype)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.fill(decoder_of(model).layers[0], f"{self.prefix}.{index}")
        return model.eval()

    def embedded(self, batches: Iterable[Tensor]) -> list[Tensor]:
        """What the first layer reads of token ids (B, L) each: (B, L, D)."""
        table = self.tensor(f"{self.table}.weight")
        ids = list(batches)
        for batch in ids:
            if batch.numel() and int(batch.max()) >= len(table):
                raise InputError(f"token {int(batch.max())} of a vocabulary of {len(table)}")
        return [table[batch] for batch in ids]

    @torch.no_grad()
    def through(self, model: PreTrainedModel, hidden: list[Tensor]) -> None:
        """Run the one layer of a `layer_model` over hidden states (B, L, D) each, in place."""
        decoder = decoder_of(model)
        made: list[Tensor] = []

        def keep(layer: nn.Module, args: tuple, output: Any) -> None:
            made.append(output[0] if isinstance(output, tuple) else output)

        handle = decoder.layers[0].register_forward_hook(keep)
        try:
            for place, states in enumerate(hidden):
                decoder.module(inputs_embeds=states, use_cache=False)
                hidden[place] = made.pop()
        finally:
            handle.remove()


def remembered(module: nn.Module, name: str) -> Tensor:
    """Give a parameter or buffer of a module, by its dotted name, memory on the CPU."""
    owner, _, last = name.rpartition(".")
    held = module.get_submodule(owner)
    blank = getattr(held, last)
    real: Tensor = torch.empty(blank.shape, dtype=blank.dtype)
    if isinstance(blank, nn.Parameter):
        real = nn.Parameter(real, requires_grad=False)
    setattr(held, last, real)
    return real


def forget(module: nn.Module) -> None:
    """Take the memory of a module's parameters and buffers away."""
    module.to("meta")


def _give_back() -> None:
    """Make glibc give the memory of tensors back to the system as soon as they are gone.

    By itself it learns to keep blocks of up to 32 MB, of which pieces then lie between others.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def _renamed(name: str) -> str:
    return ".".join(RENAMED.get(part, part) for part in name.split("."))
