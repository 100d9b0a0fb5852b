"""Trained link predictors in a folder, with their graph: safetensors and JSON, never a pickle."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.files import disk_errors, replace_file, replace_text
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.predictors import link_scores
from polypath.plain import decode, encode
from polypath.routing.files import read_tensors, write_tensors

VERSION = 1
DESCRIPTION, TENSORS = "predictor.json", "predictor.safetensors"

KINDS = {
    "HeuristicScorer": "polypath.graphs.scorers",
    "LinkMoE": "polypath.graphs.link_moe",
    "NBFNet": "polypath.graphs.nbfnet",
    "NCN": "polypath.graphs.ncn",
    "NCNC": "polypath.graphs.ncn",
    "ProductMLP": "polypath.graphs.decoders",
}
"""Predictors that can be saved, and where they live."""


@dataclass(frozen=True)
class _Description:
    """What predictor.json holds; `config` is the predictor's own, relations a knowledge graph's."""

    version: int
    kind: str
    config: Any
    names: Sequence[str]
    relations: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class SavedPredictor:
    """A link predictor with the graph on which it scores pairs.

    names: of the nodes. x: (N, F) features, (N,) ids or None.
    """

    predictor: nn.Module
    graph: Adjacency
    names: Sequence[str]
    x: Tensor | None = None

    def __post_init__(self) -> None:
        nodes = self.graph.num_nodes
        if len(self.names) != nodes or (self.x is not None and len(self.x) != nodes):
            told = "" if self.x is None else f", x {tuple(self.x.shape)}"
            raise InputError(f"{len(self.names)} names{told} for a graph of {nodes} nodes")

    def scores(self, pairs: Tensor) -> Tensor:
        """(B,) logits of pairs (2, B) of nodes."""
        return link_scores(self.predictor, self.graph, self.x, pairs)

    def save(self, folder: str | Path) -> None:
        """Write predictor.json and predictor.safetensors, each whole or not at all.

        Raises InputError for a predictor of a kind that cannot be read again.
        """
        tensors = {"edges": self.graph.edges} | ({} if self.x is None else {"x": self.x})
        write_parts(folder, self.predictor, self.names, (), tensors)

    @classmethod
    def load(cls, folder: str | Path) -> SavedPredictor:
        """What `save` wrote, in evaluation mode; raises InputError where it is not that."""
        return of_graph(read_parts(folder), folder)


@dataclass(frozen=True, eq=False)
class Parts:
    """What a folder of a predictor holds; the predictor is in evaluation mode."""

    predictor: nn.Module
    names: Sequence[str]
    relations: Sequence[str]
    tensors: Mapping[str, Tensor]


def of_graph(parts: Parts, folder: str | Path) -> SavedPredictor:
    """A predictor of pairs with its graph; InputError where the parts are of something else."""
    if parts.relations or "edges" not in parts.tensors:
        raise InputError(f"{folder}: a model of a knowledge graph, not a predictor of pairs")
    edges = parts.tensors["edges"]
    graph = Adjacency.of(torch.cat([edges, edges.flip(0)], 1), len(parts.names))
    return SavedPredictor(parts.predictor, graph, parts.names, parts.tensors.get("x"))


def write_parts(
    folder: str | Path,
    predictor: nn.Module,
    names: Sequence[str],
    relations: Sequence[str],
    graph: Mapping[str, Tensor],
) -> None:
    """Write a predictor and the tensors of its graph; raises InputError for an unknown kind."""
    folder, kind = Path(folder), type(predictor).__name__
    _class_of(kind)
    weights = {f"weights.{name}": own for name, own in predictor.state_dict().items()}
    tensors = {name: tensor.cpu() for name, tensor in {**graph, **weights}.items()}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / TENSORS, partial(write_tensors, tensors=tensors))
    config = encode(predictor.config)
    description = _Description(VERSION, kind, config, list(names), list(relations))
    replace_text(folder / DESCRIPTION, json.dumps(encode(description)))


def read_parts(folder: str | Path) -> Parts:
    """What `write_parts` wrote; raises InputError where it is not that."""
    path = Path(folder) / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    description: _Description = decode(_Description, found, str(path))
    if description.version != VERSION:
        raise InputError(
            f"{path}: version {description.version}; this release reads {VERSION}, read it "
            "with the release that wrote it"
        )
    predictor = made(description.kind, description.config, f"{path}: config")
    tensors, _ = read_tensors(Path(folder) / TENSORS)
    own = "weights."
    try:
        predictor.load_state_dict(
            {name[len(own) :]: part for name, part in tensors.items() if name.startswith(own)}
        )
    except RuntimeError as error:
        raise InputError(f"{folder}: {TENSORS} does not fit {DESCRIPTION}: {error}") from error
    # A file's memory is not aligned as fresh tensors are, and products of it round differently.
    graph = {name: part.clone() for name, part in tensors.items() if not name.startswith(own)}
    return Parts(predictor.eval(), description.names, description.relations, graph)


def made(kind: str, config: Any, where: str) -> nn.Module:
    """A predictor of a class, as it is before it has learnt or read anything.

    config: its own, or plain values of it; InputError says `where` these are wrong.
    """
    found = _class_of(kind)
    hint = get_type_hints(found.__init__)["config"]
    return found(config if isinstance(config, hint) else decode(hint, config, where))


def _class_of(kind: str) -> type[nn.Module]:
    if kind not in KINDS:
        raise unknown("link predictor", kind, KINDS)
    return getattr(importlib.import_module(KINDS[kind]), kind)
