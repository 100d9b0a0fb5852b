"""OGB's own splits of links, as its package gives them to those who have it.

Source: Open Graph Benchmark (Hu et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.splits import LinkSplit

POSITIVES, NEGATIVES = ("train", "valid", "test"), ("valid", "test")


def ogb_split(parts: Mapping[str, Mapping[str, Any]], num_nodes: int) -> LinkSplit:
    """What `get_edge_split()` of ogbl-collab, ogbl-ddi or ogbl-ppa gives, as a `LinkSplit`.

    parts: by train, valid and test: edge (B, 2), and edge_neg (B, 2) of the last two. Pairs to
    validate on and to test on that an earlier part has are left out: in ogbl-collab, people who
    write together again.
    Raises InputError for parts that are not that; ogbl-citation2 has rivals of each pair instead.
    """
    seen = torch.empty(0, dtype=torch.int64)
    positives = {}
    for part in POSITIVES:
        pairs = _pairs(parts, part, "edge").T
        low, high = pairs.min(0).values, pairs.max(0).values
        keys = (low * num_nodes + high)[low != high].unique()
        keys = keys[~torch.isin(keys, seen)]
        seen = torch.cat([seen, keys])
        positives[part] = torch.stack([keys // num_nodes, keys % num_nodes])
    negatives = {f"{part}_negatives": _pairs(parts, part, "edge_neg").T for part in NEGATIVES}
    return LinkSplit(num_nodes, **positives, **negatives)


def _pairs(parts: Mapping[str, Mapping[str, Any]], part: str, key: str) -> Tensor:
    own = parts.get(part, {})
    if key not in own:
        known = ", ".join(own) or "nothing"
        raise InputError(f"OGB's split: {part} has {known}; edge and edge_neg of pairs are right")
    pairs = torch.as_tensor(own[key])
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise InputError(
            f"OGB's split: {key} of {part} is {tuple(pairs.shape)} of {pairs.dtype}; (B, 2) of "
            "torch.int64 is right"
        )
    return pairs
