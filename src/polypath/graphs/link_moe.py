"""Link-MoE: a gate that looks at a pair mixes the logits of link predictors that no longer learn.

A pair is a row of numbers: the product of both nodes' features, what the structure of the graph
says of it, and the scores of all experts. Router and experts of the mixture read their columns.

Shapes: N nodes, F features of a node, B pairs, S columns of structure, E experts; D = F + S + E.
Source: Mixture of Link Predictors on Graphs (Ma et al. 2024, arXiv 2402.08583). As the
specification advises, and unlike the authors' code, inputs of the gate are standardised, and scores
of experts are calibrated logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.calibrate import PlattScaling
from polypath.graphs.pair_features import OF_GATE, pair_features, width
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import made
from polypath.routing import MoE, Routing, RoutingContext, SoftRouter

Block = Literal["features", "structure", "scores"]
"""Columns of a row."""


@dataclass(frozen=True)
class GateConfig:
    """What a gate is made of.

    inputs: what it reads; nothing for weights that are the same for all pairs (global ensemble).
    layers: of each input's own network, of width dim; last_layers: of the one that joins them.
    """

    inputs: Sequence[Block] = ("features", "structure")
    dim: int = 32
    layers: int = 2
    last_layers: int = 1
    dropout: float = 0.3

    def __post_init__(self) -> None:
        for name in self.inputs:
            if name not in get_args(Block):
                raise unknown("input of the gate", name, get_args(Block))
        if min(self.dim, self.layers, self.last_layers) < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"gate: dim={self.dim}, layers={self.layers}, last_layers={self.last_layers}, "
                f"dropout={self.dropout}; at least 1, and a dropout from 0 to below 1, are right"
            )


def blocks_of(features: int, structure: int, num_experts: int) -> dict[Block, slice]:
    """Where a row has which columns."""
    ends = [features, features + structure, features + structure + num_experts]
    starts = [0, *ends[:-1]]
    return {
        name: slice(start, end)
        for name, start, end in zip(get_args(Block), starts, ends, strict=True)
    }


class PairGate(nn.Module):
    """A scorer of experts: a network on each input, and one on what these found.

    blocks: see `blocks_of`; inputs without columns are left out. Inputs are standardised column by
    column, by `standardise`; features, most of which are 0 for most pairs, are divided by one
    number, so that their rows have a length of about 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, blocks: Mapping[Block, slice], num_experts: int, config: GateConfig) -> None:
        super().__init__()
        self.blocks = {n: blocks[n] for n in config.inputs if blocks[n].stop > blocks[n].start}
        self.branches = nn.ModuleDict(
            {
                name: _stack(own.stop - own.start, config.dim, config.layers, config.dropout)
                for name, own in self.blocks.items()
            }
        )
        size = max(own.stop for own in blocks.values())
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        # The bias stands alone where there is nothing to read.
        self.bias = nn.Parameter(torch.zeros(num_experts))
        self.last: nn.Module | None = None
        if self.branches:
            joined = config.dim * len(self.branches)
            before = _stack(joined, config.dim, config.last_layers - 1, config.dropout)
            wide = config.dim if config.last_layers > 1 else joined
            self.last = nn.Sequential(*before, nn.Linear(wide, num_experts, bias=False))

    @torch.no_grad()
    def standardise(self, rows: Tensor) -> None:
        """By the mean and the spread of rows (B, D), those of the pairs that it is trained on."""
        for name, own in self.blocks.items():
            part = rows[:, own]
            if name == "features":
                self.scale[own] = part.square().sum(1).mean().sqrt().clamp_min(1e-12)
            else:
                self.mean[own] = part.mean(0)
                spread = part.std(0, correction=0)
                self.scale[own] = torch.where(spread > 1e-6, spread, 1.0)

    def forward(self, rows: Tensor, context: RoutingContext) -> Tensor:
        """(B, E) from rows (B, D)."""
        if self.last is None:
            return self.bias.expand(len(rows), -1)
        found = [
            self.branches[name]((rows[:, own] - self.mean[own]) / self.scale[own])
            for name, own in self.blocks.items()
        ]
        return self.last(torch.cat(found, 1)) + self.bias


class FrozenScores(nn.Module):
    """Experts whose scores are the last columns of a row already; a mixture of their logits."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.calibration = PlattScaling(num_experts)

    def forward(self, rows: Tensor, routing: Routing) -> Tensor:
        """(B, 1): Σ weight · logit over each pair's chosen experts."""
        experts = len(self.calibration.scale)
        if routing.num_experts != experts:
            raise InputError(f"a routing over {routing.num_experts} experts for {experts} scores")
        logits = self.calibration(rows[:, -experts:])
        chosen = logits.gather(1, routing.experts.clamp_min(0))
        return (chosen * routing.weights).sum(1, keepdim=True)


class ScoreMixture(MoE):
    """Rows (B, D) to logits (B, 1): a softmax gate over the experts' calibrated logits.

    It is a routed layer like any other: `polypath.record` tells who weighed what.
    """

    def __init__(self, features: int, structure: int, num_experts: int, gate: GateConfig) -> None:
        if num_experts < 1:
            raise InputError("Link-MoE: no experts; one at least is right")
        blocks = blocks_of(features, structure, num_experts)
        self.size = blocks["scores"].stop
        scorer = PairGate(blocks, num_experts, gate)
        super().__init__(SoftRouter(self.size, num_experts, scorer), FrozenScores(num_experts))

    def fit_scales(self, right: Tensor, wrong: Tensor, calibrate: bool = True) -> None:
        """Standardise the gate's inputs, and calibrate the experts, by the rows to train on.

        right: (P, D) of positives. wrong: (M, D) of negatives. calibrate: else scores are mixed as
        they are.
        """
        cast(PairGate, cast(SoftRouter, self.router).scorer).standardise(torch.cat([right, wrong]))
        if calibrate:
            calibration = cast(FrozenScores, self.experts).calibration
            count = len(calibration.scale)
            calibration.fit(right[:, -count:], wrong[:, -count:])


@dataclass(frozen=True)
class Expert:
    """A link predictor: the name of its class, and its own configuration, or plain values of it."""

    kind: str
    config: Any


@dataclass(frozen=True)
class LinkMoEConfig:
    """What a `LinkMoE` is made of.

    features: of a node, that the gate may read; 0 for none. structure: see `pair_features`.
    """

    experts: Sequence[Expert]
    features: int = 0
    structure: Sequence[str] = OF_GATE
    gate: GateConfig = field(default_factory=GateConfig)


class LinkMoE(nn.Module):
    """Link predictors that no longer learn, and a gate over them; a link predictor itself.

    experts: the predictors of `config.experts`, trained; made anew where they are not given, for a
    state that is to be loaded. Only the mixture has parameters that learn.
    """

    def __init__(self, config: LinkMoEConfig, experts: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        self.config = config
        own = (
            [made(one.kind, one.config, one.kind) for one in config.experts]
            if experts is None
            else experts
        )
        self.experts = nn.ModuleList(own).requires_grad_(False)
        self.mixture = ScoreMixture(
            config.features, width(config.structure), len(config.experts), config.gate
        )

    @classmethod
    def of(
        cls,
        experts: Sequence[nn.Module],
        features: int = 0,
        structure: Sequence[str] = OF_GATE,
        gate: GateConfig | None = None,
    ) -> LinkMoE:
        """Of trained predictors."""
        told = [Expert(type(one).__name__, getattr(one, "config", None)) for one in experts]
        config = LinkMoEConfig(told, features, structure, gate or GateConfig())
        return cls(config, experts)

    def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(B,) logits of pairs (2, B), the same for both orders.

        Raises InputError for a pair that is an edge of the graph.
        """
        return self.mixture(self.rows(graph, x, pairs))[:, 0]

    @torch.no_grad()
    def rows(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(B, D), without a gradient; experts in evaluation mode, as they were trained.

        Raises InputError for features of another shape, and for a pair that is an edge.
        """
        wanted, nodes = self.config.features, graph.num_nodes
        if wanted and (x is None or x.shape != (nodes, wanted)):
            given = "none" if x is None else f"{tuple(x.shape)}"
            raise InputError(f"Link-MoE: x is {given}; features ({nodes}, {wanted}) are right")
        pairs = pairs.sort(0).values
        structure = pair_features(graph, pairs, self.config.structure).to(pairs.device)
        scores = [link_scores(expert, graph, x, pairs).float() for expert in self.experts]
        return pair_rows(x if wanted else None, pairs, structure, torch.stack(scores, 1))


def pair_rows(x: Tensor | None, pairs: Tensor, structure: Tensor, scores: Tensor) -> Tensor:
    """(B, D): rows of pairs (2, B) from their structure (B, S) and experts' scores (B, E).

    x: (N, F), of which each node's is taken at unit length, or None for rows without features.
    """
    if x is None:
        return torch.cat([structure, scores], 1)
    units = F.normalize(x.float())
    return torch.cat([units[pairs[0]] * units[pairs[1]], structure, scores], 1)


def _stack(inputs: int, dim: int, layers: int, dropout: float) -> nn.Sequential:
    """Layers that each end with ReLU and dropout."""
    found: list[nn.Module] = []
    for layer in range(layers):
        found += [nn.Linear(dim if layer else inputs, dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*found)
