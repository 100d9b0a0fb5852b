"""NCN: a pair is known by its neighbours' states; NCNC: and by those that it may yet share.

Shapes: N nodes, D channels, B pairs, C = N(i) ∩ N(j) of a pair (i, j).
Source: NCN (Wang et al. 2024, arXiv 2302.00890), as the authors' code has it: two branches are
added, where the paper puts their inputs side by side. Where the code departs from its own equation
the equation is kept: a completion sees the same states and the same graph as the pair that asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.dropout import Dropout
from polypath.graphs.encoders import EncoderConfig, GraphEncoder
from polypath.graphs.overlap import Ragged, common_neighbours, overlap

PIECE = 1 << 14
"""Pairs at once where no gradient is kept."""

Pool = Literal["nodes", "count", "none"]


@dataclass(frozen=True)
class NCNConfig:
    """What an `NCN` is made of.

    pool: what it knows of shared neighbours: their states; how many there are (GAE + CN); nothing
    (GAE). dropout: of the head. edge_dropout: of the neighbours that it looks at.
    transform: adds to each state a learned map of it before states are summed. two_layers: the last
    network has one more. tail_activation: the two branches end with their activation, else with
    another linear layer.
    """

    encoder: EncoderConfig
    pool: Pool = "nodes"
    dropout: float = 0.3
    edge_dropout: float = 0.0
    transform: bool = True
    two_layers: bool = False
    tail_activation: bool = True

    def __post_init__(self) -> None:
        if self.pool not in get_args(Pool):
            raise unknown("pool", self.pool, get_args(Pool))
        for name in ("dropout", "edge_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"NCN: {name}={getattr(self, name)}; from 0 to below 1")


@dataclass(frozen=True)
class Calibration:
    """From the logit of a missing edge to how much its node counts.

    weight · σ(scale (logit - offset) + ln prior); the paper's code has κ, o, π and α, in which p0 =
    σ(κ (x - o)) becomes α π p0 / (π p0 + 1 - p0), which is the same.
    """

    scale: float = 5.0
    offset: float = 3.0
    prior: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.prior < 0 or self.weight < 0:
            raise InputError(
                f"calibration: prior={self.prior}, weight={self.weight}; 0 is the least"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """As `logits`, of any shape."""
        shift = torch.tensor(self.prior, dtype=logits.dtype, device=logits.device).log()
        return self.weight * (self.scale * (logits - self.offset) + shift).sigmoid()


@dataclass(frozen=True)
class NCNCConfig(NCNConfig):
    """What an `NCNC` is made of.

    depth: 0 is NCN, 1 completes by it, 2 completes by what depth 1 says, and so on.
    sampled: at most so many of the nodes next to i alone, and next to j alone, are drawn of each
    pair, with replacement, for an unbiased sum; None takes all. sampled_in_test: at most so many in
    evaluation, evenly spaced among these nodes, so that a pair's score is the same in any batch.
    """

    calibration: Calibration = field(default_factory=Calibration)
    depth: int = 1
    sampled: int | None = None
    sampled_in_test: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 0:
            raise InputError(f"NCNC: depth={self.depth}; 0 is the least")
        if self.pool != "nodes":
            raise InputError(f"NCNC: pool={self.pool!r}; states of nodes are what it completes")
        for name in ("sampled", "sampled_in_test"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"NCNC: {name}={value}; at least 1, or None for all")


class States(NamedTuple):
    """What pairs are scored from.

    graph: whose neighbours are looked at. h: (N, D), the encoder's. pooled: (N, D), what is summed;
    None where it is yet to be made of h, for the nodes that are looked at alone.
    """

    graph: Adjacency
    h: Tensor
    pooled: Tensor | None


class NCN(nn.Module):
    """The product of both states, and the sum of the states of shared neighbours."""

    def __init__(self, config: NCNConfig) -> None:
        super().__init__()
        self.config = config
        width, drop = config.encoder.dim, config.dropout
        self.encoder = GraphEncoder(config.encoder)
        self.transform: nn.Module | None = None
        if config.transform and config.pool == "nodes":
            self.transform = nn.Sequential(
                *_block(width, width, drop, norm=False), *_block(width, width, drop)
            )
        tail = [] if config.tail_activation else [nn.Linear(width, width)]
        self.of_product = nn.Sequential(*_block(width, width, drop), *tail)
        self.of_pool: nn.Module | None = None
        if config.pool != "none":
            inputs = 1 if config.pool == "count" else width
            tail = [] if config.tail_activation else [nn.Linear(width, width)]
            self.of_pool = nn.Sequential(
                *_block(inputs, width, drop, norm=False), *_block(width, width, drop), *tail
            )
            self.share = nn.Parameter(torch.ones(()))
        more = _block(width, width, drop) if config.two_layers else []
        self.last = nn.Sequential(*_block(width, width, drop), *more, nn.Linear(width, 1))

    def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(B,) logits of pairs (2, B), the same in both orders; the encoder runs once.

        Raises InputError for pairs of a node with itself, and for an x that does not fit.
        """
        return self.decode(graph, self.encoder(graph, x), pairs)

    def decode(self, graph: Adjacency, h: Tensor, pairs: Tensor) -> Tensor:
        """(B,) logits from states h (N, D) of the encoder."""
        check_pairs(pairs, graph.num_nodes)
        if self.training and self.config.edge_dropout:
            graph = thinned(graph, self.config.edge_dropout)
        pairs = pairs.sort(0).values  # sums of either order round alike
        if torch.is_grad_enabled() or pairs.shape[1] <= PIECE:
            return self.logits(self.states(graph, h), pairs)
        states = States(graph, h, self.transformed(h))
        return torch.cat([self.logits(states, part) for part in pairs.split(PIECE, 1)])

    def states(self, graph: Adjacency, h: Tensor) -> States:
        """What the pairs of one batch are scored from."""
        return States(graph, h, None)

    def transformed(self, h: Tensor) -> Tensor:
        """(·, D): what is summed of nodes with states h."""
        return h if self.transform is None else h + self.transform(h)

    def logits(self, states: States, pairs: Tensor) -> Tensor:
        """(B,), of pairs whose smaller id is above."""
        return self._from_pool(states, pairs, self.pool(states, pairs))

    def pool(self, states: States, pairs: Tensor) -> Tensor | None:
        """(B, D), or (B, 1) for counts: what the pairs' shared neighbours tell."""
        if self.config.pool == "none":
            return None
        shared = common_neighbours(states.graph, pairs)
        if self.config.pool == "count":
            return shared.counts[:, None].to(states.h.dtype)
        if states.pooled is not None:
            return shared.pool(states.pooled)
        nodes, own = compact(shared, len(states.h))
        return own.pool(self.transformed(states.h[nodes]))

    def _from_pool(self, states: States, pairs: Tensor, pool: Tensor | None) -> Tensor:
        i, j = pairs
        known = self.of_product(states.h[i] * states.h[j])
        if pool is not None and self.of_pool is not None:
            known = known + self.share * self.of_pool(pool)
        return self.last(known)[:, 0]


class NCNC(NCN):
    """NCN that also sums neighbours of one end alone, as likely as it holds their missing edge.

    How likely an edge is has no gradient; how much its node says has one.
    """

    config: NCNCConfig

    def __init__(self, config: NCNCConfig) -> None:
        super().__init__(config)

    def states(self, graph: Adjacency, h: Tensor) -> States:
        """What the pairs of one batch, and those that complete them, are scored from."""
        return States(graph, h, self.transformed(h))

    def logits(self, states: States, pairs: Tensor) -> Tensor:
        """(B,), of pairs whose smaller id is above."""
        return self.logits_at(states, pairs, self.config.depth)

    def logits_at(self, states: States, pairs: Tensor, depth: int) -> Tensor:
        """(B,) logits that complete `depth` times."""
        pool = self.pool(states, pairs) if depth == 0 else self.completed(states, pairs, depth)
        return self._from_pool(states, pairs, pool)

    def completed(self, states: States, pairs: Tensor, depth: int) -> Tensor:
        """(B, D): shared neighbours, and those of one end alone times their weights."""
        assert states.pooled is not None
        found = overlap(states.graph, pairs)
        most = self.config.sampled if self.training else self.config.sampled_in_test
        left, right = (drawn(side, most, self.training) for side in (found.left, found.right))
        missing = [
            torch.stack([side.nodes, end[side.rows]])
            for (side, _), end in zip((left, right), pairs.flip(0), strict=True)
        ]
        weights = self.completion(states, torch.cat(missing, 1), depth)
        sides = [
            side.pool(states.pooled, own * share)
            for (side, share), own in zip(
                (left, right), weights.split([len(left[1]), len(right[1])]), strict=True
            )
        ]
        return found.common.pool(states.pooled) + sides[0] + sides[1]

    @torch.no_grad()
    def completion(self, states: States, pairs: Tensor, depth: int) -> Tensor:
        """(P,): how likely each pair is an edge, from the logits that complete one time less.

        0 for a node with itself, which is asked where the pair that asks is an edge.
        """
        found = states.h.new_zeros(pairs.shape[1])
        others = (pairs[0] != pairs[1]).nonzero()[:, 0]
        for part in others.split(PIECE):
            logits = self.logits_at(states, pairs[:, part].sort(0).values, depth - 1)
            found[part] = self.config.calibration(logits)
        return found


def drawn(side: Ragged, most: int | None, random: bool = True) -> tuple[Ragged, Tensor]:
    """At most so many nodes of each pair, and how many of these each stands for (P,).

    All, for 1 each, where there are no more than `most`. Else they are drawn with replacement, for
    unbiased sums, or, not at random, evenly spaced.
    """
    counts = side.counts
    take = counts if most is None else counts.clamp_max(most)
    starts = torch.cat([take.new_zeros(1), take.cumsum(0)])
    ids = torch.arange(len(take), device=take.device)
    rows = ids.repeat_interleave(take)
    share = counts[rows] / take[rows]
    if most is None or not len(rows):
        return side, share
    place = torch.arange(len(rows), device=rows.device) - starts[rows]
    if random:
        chances = torch.rand(len(rows), dtype=torch.float64).to(rows.device)
        place = torch.where(share > 1, (chances * counts[rows]).long(), place)
    else:
        place = (2 * place + 1) * counts[rows] // (2 * take[rows])
    return Ragged(starts, side.nodes[side.starts[rows] + place]), share


def compact(found: Ragged, size: int) -> tuple[Tensor, Ragged]:
    """Which of the ids below `size` are found, and the same lists of places among these."""
    seen = torch.zeros(size, dtype=torch.bool, device=found.nodes.device)
    seen[found.nodes] = True
    return seen.nonzero()[:, 0], Ragged(found.starts, (seen.cumsum(0) - 1)[found.nodes])


def thinned(graph: Adjacency, share: float) -> Adjacency:
    """Neighbour lists without a random share; who is left out of one list may be in the other."""
    return graph.kept(torch.rand(len(graph.nodes), device=graph.nodes.device) >= share)


def _block(inputs: int, outputs: int, dropout: float, norm: bool = True) -> list[nn.Module]:
    """Linear, LayerNorm, dropout, ReLU."""
    between = [nn.LayerNorm(outputs)] if norm else []
    return [nn.Linear(inputs, outputs), *between, Dropout(dropout), nn.ReLU()]
