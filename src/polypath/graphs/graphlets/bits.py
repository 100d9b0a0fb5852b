"""What processors do with the bits of a word, for compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from polypath.graphs.kernels import inner


@intrinsic
def ones_of(context: Any, word: Any) -> Any:
    """How many bits of a uint64 are set."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), build


@intrinsic
def lowest_of(context: Any, word: Any) -> Any:
    """The place of the lowest bit of a uint64 that is set; 64 where none is."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))

    return types.int64(types.uint64), build


@inner
def note(low: np.ndarray, high: np.ndarray, node: int) -> None:
    """Put a node into a set of two levels of bits: low of nodes, high of words of low."""
    word = node >> 6
    low[word] |= np.uint64(1) << np.uint64(node & 63)
    high[word >> 6] |= np.uint64(1) << np.uint64(word & 63)


@inner
def ascending(low: np.ndarray, high: np.ndarray, found: np.ndarray) -> int:
    """Empty the set into `found`, ascending; gives their number.

    Its cost is that of the set and a 4096th of all nodes, so that nothing has to be sorted.
    """
    count = 0
    for place in range(len(high)):
        above = high[place]
        high[place] = 0
        while above != 0:
            word = 64 * place + lowest_of(above)
            above &= above - np.uint64(1)
            own = low[word]
            low[word] = 0
            while own != 0:
                found[count] = 64 * word + lowest_of(own)
                own &= own - np.uint64(1)
                count += 1
    return count
