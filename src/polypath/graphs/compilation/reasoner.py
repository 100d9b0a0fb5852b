"""A network that runs an algorithm step by step: encode, pass messages, decode, feed back.

What is compiled and what is trained are the same class; only their weights differ.
Shapes: B graphs, N nodes, T steps, L layers, H heads, D hidden.
Source: CLRS-30 (Veličković et al. 2022), with what exact execution needs besides: edges in values,
no LayerNorm, more layers in a step, after Mind The Gap (arXiv 2505.18623).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.compilation.algorithms import Kind, State, find
from polypath.graphs.compilation.batches import GraphBatch
from polypath.graphs.compilation.processor import GATv2Layer

Feedback = Literal["soft", "hard"]
EDGES = ("weight", "edge", "self", "pi")
"""Features of i's edge to j: its weight, whether it is there, i = j, and i's pointer."""


@dataclass(frozen=True)
class ReasonerConfig:
    """The shape of a network for one algorithm.

    layers: rounds of messages in a step. local_layers: ReLUs behind each. edge_values: edges are
    in what is gathered, not in attention alone. everywhere: nodes attend to all nodes, else to
    their neighbours, themselves and where they point. hints: the algorithm's state is decoded and
    fed back; without, all state is hidden.
    """

    algorithm: str
    hidden: int = 128
    heads: int = 1
    layers: int = 1
    local_layers: int = 1
    edge_values: bool = True
    layer_norm: bool = True
    everywhere: bool = False
    hints: bool = True

    def __post_init__(self) -> None:
        find(self.algorithm)
        for name in ("hidden", "heads", "layers", "local_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"reasoner: {name}={getattr(self, name)}; at least 1 is needed")
        if self.hidden % self.heads:
            raise InputError(
                f"reasoner: hidden={self.hidden} is not a multiple of heads={self.heads}"
            )

    @property
    def features(self) -> tuple[str, ...]:
        """The names of a node's features: its inputs, then what is fed back."""
        own = find(self.algorithm)
        names = ["position", "source"] if own.source else ["position"]
        for name, kind in own.hints.items():
            if kind == "categorical":
                names += [f"{name} {value}" for value in range(3)]
            elif kind != "pointer":
                names.append(name)
        return tuple(names)

    @property
    def told(self) -> dict[str, slice]:
        """Where each hint of a node is in what is decoded."""
        found, at = {}, 0
        for name, kind in find(self.algorithm).hints.items():
            if kind != "pointer":
                width = 3 if kind == "categorical" else 1
                found[name] = slice(at, at + width)
                at += width
        return found


class Rollout(NamedTuple):
    """What a network did.

    hints: raw, by name: masks as logits and scalars (T, B, N), classes (T, B, N, 3), pointers
    (T, B, N, N); of one among nodes, -∞ for padding; none where it has no hints. scores:
    (B, N, N), of each node's predecessor after the graph's last step. attention:
    (T, B, L, H, N, N). hidden: (T, B, N, D).
    """

    hints: State
    scores: Tensor
    attention: Tensor
    hidden: Tensor

    @property
    def pi(self) -> Tensor:
        """(B, N) int64: predecessors."""
        return self.scores.argmax(-1)


class Pointers(nn.Module):
    """Scores wᵀ max(p₁(h_i), p₂(h_j) + p₃(e_ji)) of j as what i points to."""

    def __init__(self, inputs: int, edges: int, hidden: int) -> None:
        super().__init__()
        self.own = nn.Linear(inputs, hidden)
        self.other = nn.Linear(inputs, hidden, bias=False)
        self.edge = nn.Linear(edges, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, h: Tensor, e: Tensor, encode: Tensor, nodes: Tensor) -> Tensor:
        """(B, N, N); -∞ for padding. h: (B, N, I). e: (B, N, N, F), encoded by (E, F)."""
        edges = F.linear(e, self.edge.weight @ encode).transpose(1, 2)
        channels = torch.maximum(self.own(h)[:, :, None], self.other(h)[:, None] + edges)
        return self.score(channels)[..., 0].masked_fill(~nodes[:, None], -torch.inf)


class Reasoner(nn.Module):
    """A recurrent GATv2 network; what it decodes in a step is what it reads in the next.

    Raises InputError for graphs that its algorithm does not take.
    """

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.config = config
        features, hidden = len(config.features), config.hidden
        self.nodes = nn.Linear(features, hidden)
        self.edges = nn.Linear(len(EDGES), hidden, bias=False)
        self.layers = nn.ModuleList(
            GATv2Layer(
                2 * hidden,
                hidden,
                hidden,
                config.heads,
                config.local_layers,
                config.edge_values,
                config.layer_norm,
            )
            for _ in range(config.layers)
        )
        told = sum(part.stop - part.start for part in config.told.values())
        self.hints = nn.Linear(3 * hidden, told)
        self.pointers = Pointers(3 * hidden, hidden, hidden)
        self.output = Pointers(3 * hidden, hidden, hidden)
        with torch.no_grad():  # scalars that are fed back may be large; their columns begin small
            for column, name in enumerate(config.features):
                if find(config.algorithm).hints.get(name) == "scalar":
                    nn.init.trunc_normal_(
                        self.nodes.weight[:, column : column + 1], std=1 / math.sqrt(hidden)
                    )

    def forward(self, graphs: GraphBatch, steps: Tensor, feedback: Feedback = "soft") -> Rollout:
        """Run for as many steps (B,) int64 as each graph takes; all go on to the last.

        feedback: "soft" reads decoded chances in the next step, "hard" decisions; never the truth.
        """
        config, dtype = self.config, self.nodes.weight.dtype
        if steps.shape != graphs.sources.shape or not len(graphs) or int(steps.min()) < 1:
            raise InputError(
                f"reasoner: steps {tuple(steps.shape)} for {len(graphs)} graphs; (B,) of at least "
                "1 is right"
            )
        inputs, static = self._inputs(graphs, dtype)
        mask, most = self._masks(graphs)
        state = find(config.algorithm).start(graphs)
        fed = {name: _one_hot(kind, state[name], dtype) for name, kind in self.kinds.items()}
        encode = self.edges.weight
        layers = [cast(GATv2Layer, layer) for layer in self.layers]
        maps = [layer.maps(encode) for layer in layers]
        hidden = inputs.new_zeros(*inputs.shape[:2], config.hidden)
        known, edges, raw, attention, states = [], [], [], [], []
        for _ in range(int(steps.max())):
            nodes, e = self._encode(inputs, static, fed)
            seen = mask | (fed["pi"] + fed["pi"].mT > 0.5) & most
            h, looked = hidden, []
            for layer, own in zip(layers, maps, strict=True):
                h, alpha = layer(torch.cat([nodes, h], -1), e, own, seen)
                looked.append(alpha.detach())
            known.append(torch.cat([nodes, hidden, h], -1))
            edges.append(e)
            hidden = h
            if config.hints:
                raw.append(self._decode(known[-1], e, graphs.nodes))
                fed = {name: self._feed(value, name, feedback) for name, value in raw[-1].items()}
            attention.append(torch.stack(looked, 1))
            states.append(h)
        ends = steps - 1, torch.arange(len(graphs), device=steps.device)
        last, at = torch.stack(known)[ends], torch.stack(edges)[ends]
        return Rollout(
            {name: torch.stack([one[name] for one in raw]) for name in self.kinds if raw},
            self.output(last, at, encode, graphs.nodes),
            torch.stack(attention),
            torch.stack(states),
        )

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds of hints by name."""
        return dict(find(self.config.algorithm).hints)

    def _inputs(self, graphs: GraphBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Features that stay: of nodes (B, N, ·) and of edges (B, N, N, 3)."""
        inputs = graphs.positions[..., None]
        if find(self.config.algorithm).source:
            inputs = torch.stack([graphs.positions, graphs.starts], -1)
        own = torch.eye(inputs.shape[1], device=inputs.device).expand_as(graphs.weights)
        static = torch.stack([graphs.weights, graphs.edges, own], -1)
        return inputs.to(dtype), static.to(dtype)

    def _masks(self, graphs: GraphBatch) -> tuple[Tensor, Tensor]:
        """(B, N, N) bool: whom a node sees, and whom it may see besides, where pointers go."""
        real = graphs.nodes
        own = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        most = real[:, :, None] & real[:, None] | own  # padding sees itself, so has a softmax
        edges = graphs.edges
        return most if self.config.everywhere else edges | edges.mT | own, most

    def _encode(self, inputs: Tensor, static: Tensor, fed: State) -> tuple[Tensor, Tensor]:
        """(B, N, D) and raw (B, N, N, 4)."""
        own = [value for name, value in fed.items() if self.kinds[name] != "pointer"]
        pointer = fed["pi"][..., None]
        if not self.config.hints:
            own, pointer = [torch.zeros_like(value) for value in own], torch.zeros_like(pointer)
        return self.nodes(torch.cat([inputs, *own], -1)), torch.cat([static, pointer], -1)

    def _decode(self, known: Tensor, e: Tensor, nodes: Tensor) -> State:
        told = self.hints(known)
        found: State = {}
        for name, kind in self.kinds.items():
            if kind == "pointer":
                found[name] = self.pointers(known, e, self.edges.weight, nodes)
            else:
                part = told[..., self.config.told[name]]
                found[name] = part if kind == "categorical" else part[..., 0]
                if kind == "mask_one":
                    found[name] = found[name].masked_fill(~nodes, -torch.inf)
        return found

    def _feed(self, raw: Tensor, name: str, feedback: Feedback) -> Tensor:
        """What the next step reads: (B, N, ·) of nodes, (B, N, N) of pointers."""
        kind = self.kinds[name]
        if kind == "scalar":
            return raw[..., None]
        if feedback == "hard":
            return _one_hot(kind, decide(kind, raw), raw.dtype)
        if kind == "mask":
            return raw.sigmoid()[..., None]
        return raw.softmax(-1)[..., None] if kind == "mask_one" else raw.softmax(-1)


def decide(kind: Kind, raw: Tensor) -> Tensor:
    """Raw predictions as states: masks bool, classes and pointers int64, scalars as they are."""
    if kind == "mask":
        return raw > 0
    if kind == "mask_one":
        return F.one_hot(raw.argmax(-1), raw.shape[-1]).bool()
    return raw if kind == "scalar" else raw.argmax(-1)


def _one_hot(kind: Kind, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A state as features: (B, N, 1), (B, N, 3) or (B, N, N)."""
    if kind in ("mask", "mask_one", "scalar"):
        return value.to(dtype)[..., None]
    classes = 3 if kind == "categorical" else value.shape[-1]
    return F.one_hot(value, classes).to(dtype)
