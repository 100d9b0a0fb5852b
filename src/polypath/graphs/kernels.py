"""How loops over graphs are compiled on the CPU, and the arrays that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """A loop compiled with numba on first use and kept on disk; `prange` runs on torch's threads.

    Products may be fused with sums, which rounds once instead of twice; nothing is reordered.
    """
    compiled = numba.njit(cache=True, parallel=True, nogil=True, fastmath={"contract"})(function)

    def run(*arguments: Any) -> Any:
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        if torch.get_num_threads() != threads:  # numba's first launch sets it for all of OpenMP
            torch.set_num_threads(threads)
        return compiled(*arguments)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run  # type: ignore[return-value]


inner = numba.njit(cache=True, nogil=True, fastmath={"contract"})
"""For functions that kernels call."""


def array(tensor: Tensor) -> np.ndarray:
    """The memory of a CPU tensor, without its autograd history."""
    return tensor.detach().contiguous().numpy()
