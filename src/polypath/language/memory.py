"""What a routed layer remembers of earlier things while a model generates.

It lives in the host's cache of keys and values, as a layer of its own behind those of the host, so
that whatever beam search or assisted generation does to these is done to it as well.
"""

from __future__ import annotations

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from polypath.errors import InputError


class Memory:
    """What layer `index` of a host of `layers` layers has been told, in the host's cache."""

    def __init__(self, cache: Cache, index: int, layers: int) -> None:
        self.cache = cache
        self.index = index
        self.place = layers + index

    def __call__(self, told: Tensor) -> Tensor:
        """(B, N, W) of the newest things; (B, M, W) of all.

        The host's layer has the newest things already. Raises InputError when it has seen others.
        """
        layers = self.cache.layers
        while len(layers) <= self.place:
            layers.append(DynamicLayer())
        every, _ = layers[self.place].update(told[:, None], told[:, None, :, :0])
        length = self.cache.get_seq_length(self.index)
        if every.shape[2] != length:
            raise InputError(
                f"layer {self.index}: the cache holds {length} tokens, its router remembers "
                f"{every.shape[2]}; a cache has to be filled by this model, and from its start"
            )
        return every[:, 0]
