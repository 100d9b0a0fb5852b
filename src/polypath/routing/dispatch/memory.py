"""Memory for the engine of CPUs: buffers that stay in cache, and large tensors that come cheap."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

from torch import Tensor

PAGE = 2 << 20
"""Bytes of a huge page."""

MADV_HUGEPAGE = 14


class Memory:
    """Buffers for the rows of one piece, used by all pieces in turn, so that they stay in cache."""

    def __init__(self, like: Tensor, rows: int) -> None:
        self._like = like
        self._rows = rows
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int) -> Tensor:
        """(rows, width), with whatever was there before."""
        if name not in self._buffers:
            self._buffers[name] = self._like.new_empty(self._rows, width)
        buffer = self._buffers[name]
        return buffer if rows == self._rows else buffer[:rows]


def on_huge_pages(fresh: Tensor) -> Tensor:
    """The same tensor, just made; where Linux will, its memory comes in pages of 2 MB.

    Large memory is new to the process each time, and in pages of 4 KB the first touch of a gradient
    can cost as much time as computing it.
    """
    start, stop = fresh.data_ptr(), fresh.data_ptr() + fresh.nbytes
    start = -(-start // PAGE) * PAGE
    if fresh.is_cpu and stop - start >= PAGE and (advise := _madvise()):
        advise(start, stop - start, MADV_HUGEPAGE)
    return fresh


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
