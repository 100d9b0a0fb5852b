"""Named tensors on disk: safetensors in, safetensors out, and one clear error for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from polypath.errors import InputError


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> None:
    """Write tensors, and facts about them, as one safetensors file."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        # The format refuses tensors that share memory, as one mask does over all layers.
        own[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    save_file(own, path, metadata=dict(facts or {}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts as `write_tensors` wrote them; raises InputError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error
