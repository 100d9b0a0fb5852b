"""Links to train on, to validate on and to test on, and a guard against those that leak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency


@dataclass(frozen=True, eq=False)
class LinkSplit:
    """Positive and negative pairs, all (2, ·) int64, each edge once.

    train: the edges that a model may see. Raises InputError for a leak: an edge of one part, in
    either direction, in another; and for a negative that is an edge.
    """

    num_nodes: int
    train: Tensor
    valid: Tensor
    test: Tensor
    valid_negatives: Tensor
    test_negatives: Tensor

    def __post_init__(self) -> None:
        parts = {
            name: _keys(getattr(self, name), self.num_nodes)
            for name in ("train", "valid", "test", "valid_negatives", "test_negatives")
        }
        for one, other in (
            ("valid", "train"),
            ("test", "train"),
            ("test", "valid"),
            *((no, yes) for no in list(parts)[3:] for yes in list(parts)[:3]),
        ):
            found = parts[one][torch.isin(parts[one], parts[other])]
            if len(found):
                i, j = divmod(int(found[0]), self.num_nodes)
                raise InputError(
                    f"{len(found)} pairs of {one} are in {other} too, the first ({i}, {j}); "
                    "a model would know the answer"
                )

    @property
    def graph(self) -> Adjacency:
        """The graph of the training edges."""
        return self.seen(self.train)

    def seen(self, *parts: Tensor) -> Adjacency:
        """The graph of the edges of some parts."""
        pairs = torch.cat(parts, 1)
        return Adjacency.of(torch.cat([pairs, pairs.flip(0)], 1), self.num_nodes)


def split_links(
    graph: Any,
    generator: torch.Generator,
    valid: float = 0.1,
    test: float = 0.2,
    valid_negatives: float | None = None,
) -> LinkSplit:
    """A random split of an undirected graph's edges, with negatives from all pairs without an edge.

    valid, test: shares of the edges. There are as many negatives as positives in each part, but
    those of a share `valid_negatives` of the edges to validate on where given; NCN's splits are
    (0.1, 0.2) with 0.2.
    Raises InputError for shares that leave a part empty, and graphs too dense for the negatives.
    """
    adjacency = Adjacency.of(graph)
    edges = adjacency.edges
    count = edges.shape[1]
    sizes = [round(share * count) for share in (valid, test)]
    if min(sizes) < 1 or sum(sizes) >= count:
        raise InputError(
            f"split_links: valid={valid} and test={test} of {count} edges leave a part empty"
        )
    edges = edges[:, torch.randperm(count, generator=generator)]
    train, own, held = edges.split([count - sum(sizes), *sizes], 1)
    wanted = sizes[0] if valid_negatives is None else round(valid_negatives * count)
    negatives = sample_negatives(adjacency, wanted + sizes[1], generator)
    return LinkSplit(
        adjacency.num_nodes, train, own, held, negatives[:, :wanted], negatives[:, wanted:]
    )


def sample_negatives(adjacency: Adjacency, count: int, generator: torch.Generator) -> Tensor:
    """(2, count): different pairs i < j without an edge, all with the same chance.

    Raises InputError where there are not so many.
    """
    nodes = adjacency.num_nodes
    free = nodes * (nodes - 1) // 2 - adjacency.num_edges
    if count > free:
        raise InputError(f"{count} negatives are wanted; {free} pairs have no edge")
    edges = _keys(adjacency.edges, nodes)
    if 2 * count > free:
        every = torch.triu_indices(nodes, nodes, 1)
        every = every[:, ~torch.isin(_keys(every, nodes), edges)]
        return every[:, torch.randperm(free, generator=generator)[:count]]
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        drawn = torch.randint(nodes, (2, 2 * count), generator=generator)
        keys = _keys(drawn[:, drawn[0] != drawn[1]], nodes)
        keys = torch.cat([found, keys[~torch.isin(keys, edges)]])
        found = _first_of_each(keys)
    found = found[:count]
    return torch.stack([found // nodes, found % nodes])


def _first_of_each(keys: Tensor) -> Tensor:
    """Without those that were there before, in the order given."""
    order = torch.argsort(keys, stable=True)
    ordered = keys[order]
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return keys[order[new].sort().values]


def _keys(pairs: Tensor, num_nodes: int) -> Tensor:
    """Pairs as numbers, the same for both directions."""
    return pairs.min(0).values * num_nodes + pairs.max(0).values
