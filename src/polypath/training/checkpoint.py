"""Training state in one safetensors file: weights, optimiser, randomness and place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from polypath.errors import InputError
from polypath.files import replace_file


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and plain facts (JSON values) as one file, whole or not at all."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    replace_file(path, lambda part: save_file(own, part, metadata={"facts": json.dumps(facts)}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote; raises InputError when the file is broken."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"{path} is not a whole checkpoint ({error}); delete it to train this part anew"
        ) from error
