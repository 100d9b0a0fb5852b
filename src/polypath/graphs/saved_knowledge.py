"""A trained NBFNet in a folder, with the knowledge graph that it answers about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.nbfnet import NBFNet
from polypath.graphs.saved import Parts, SavedPredictor, of_graph, read_parts, write_parts
from polypath.graphs.triples import KnowledgeGraph


@dataclass(frozen=True, eq=False)
class SavedKnowledge:
    """A model that answers queries, with the facts from which it reads the answers.

    Raises InputError where the model has another number of relations than the graph.
    """

    model: NBFNet
    graph: KnowledgeGraph

    def __post_init__(self) -> None:
        own, wanted = self.model.config.num_types, self.graph.num_types
        if own != wanted:
            raise InputError(
                f"a model of {own} types of edges for a graph of {wanted}; two a relation are right"
            )

    @torch.no_grad()
    def scores(self, heads: Tensor, relations: Tensor, tails: Tensor | None = None) -> Tensor:
        """(B, K) logits of tails (B, K) of queries (B,), (B,), or (B, N) of all entities."""
        device = next(self.model.parameters()).device
        asked = (None if ids is None else ids.to(device) for ids in (heads, relations, tails))
        return self.model.eval()(self.graph.edges().to(device), *asked).cpu()

    def save(self, folder: str | Path) -> None:
        """Write predictor.json and predictor.safetensors, each whole or not at all."""
        graph = self.graph
        write_parts(folder, self.model, graph.entities, graph.relations, {"facts": graph.facts})

    @classmethod
    def load(cls, folder: str | Path) -> SavedKnowledge:
        """What `save` wrote, in evaluation mode; raises InputError where it is not that."""
        return _knowledge(read_parts(folder), folder)


def read_saved(folder: str | Path) -> SavedPredictor | SavedKnowledge:
    """What a folder holds: a predictor of pairs, or a model of a knowledge graph."""
    parts = read_parts(folder)
    return _knowledge(parts, folder) if parts.relations else of_graph(parts, folder)


def _knowledge(parts: Parts, folder: str | Path) -> SavedKnowledge:
    if not parts.relations or "facts" not in parts.tensors:
        raise InputError(f"{folder}: a predictor of pairs, not a model of a knowledge graph")
    graph = KnowledgeGraph(parts.tensors["facts"], parts.names, parts.relations)
    return SavedKnowledge(cast(NBFNet, parts.predictor), graph)
