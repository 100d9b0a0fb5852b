"""What a training step of NCN costs beside the same network in products of sparse matrices.

    python benchmarks/ncn.py [--quick] [--json FILE]

On Cora with the authors' constants (where POLYPATH_DATA has it), and on a graph of 100,000 nodes
of degree 10 on average. A step takes a batch's links out of the graph, scores them and as many that
are none, and goes back. The peer does it as code on torch-sparse does, in torch's own sparse
matrices: a normalised matrix made for each batch, rows of both ends multiplied by each other, and
their product with the states. Then the overlap operator alone, by how many neighbours it touches.
On one thread, in CPU seconds of the process; medians over rounds.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timing import Call, beside, in_a_process, repeats, seconds, show, write
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.graphs import Adjacency, overlap, planetoid, sample_negatives, undirected
from polypath.graphs.datasets import data_folder
from polypath.graphs.dropout import Dropout
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.ncn import NCN, NCNC, NCNCConfig, NCNConfig
from polypath.graphs.overlap import common_neighbours
from polypath.training.ncn import published_ncn

NODES, DEGREE, FEATURES, BATCH = 100_000, 10, 64, 16_384
TOUCHED = (10**4, 10**5, 10**6, 10**7)


@dataclass(frozen=True)
class Case:
    """A graph with features, an NCN for it, and a batch of its links with as many that are none."""

    name: str
    graph: Adjacency
    x: Tensor
    config: NCNConfig
    links: Tensor
    others: Tensor

    @classmethod
    def of(cls, name: str, graph: Adjacency, x: Tensor, config: NCNConfig, batch: int) -> Case:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randperm(graph.num_edges, generator=generator)[:batch]
        return cls(
            *(name, graph, x, config),
            graph.edges[:, drawn].contiguous(),
            sample_negatives(graph, batch, generator),
        )


class Products(nn.Module):
    """The parameters of an NCN, in products of sparse matrices."""

    def __init__(self, own: NCN) -> None:
        super().__init__()
        self.own = copy.deepcopy(own)
        for module in self.own.modules():
            for name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, name, nn.Dropout(child.share))

    def score(self, edges: Tensor, x: Tensor, pairs: Tensor) -> Tensor:
        """edges: (2, M), both directions."""
        own, config = self.own, self.own.config
        h = self.encode(edges, x)
        kept = edges[:, torch.rand(edges.shape[1]) >= config.edge_dropout * self.training]
        matrix = sparse(kept, torch.ones(kept.shape[1]), len(x))
        shared = matrix.index_select(0, pairs[0]) * matrix.index_select(0, pairs[1])
        pooled = h if own.transform is None else h + own.transform(h)
        pool = own.of_pool(torch.sparse.mm(shared, pooled))
        known = own.of_product(h[pairs[0]] * h[pairs[1]]) + own.share * pool
        return own.last(known)[:, 0]

    def encode(self, edges: Tensor, x: Tensor) -> Tensor:
        encoder, config = self.own.encoder, self.own.config.encoder
        h = encoder.linear(F.dropout(x, config.input_dropout, self.training))
        h = F.dropout(h, config.dropout, self.training)
        loops = torch.arange(len(x)).expand(2, -1)
        every = torch.cat([edges, loops], 1)
        scale = every[0].bincount(minlength=len(x)).float().rsqrt()
        matrix = sparse(every, scale[every[0]] * scale[every[1]], len(x))
        h = F.dropout(torch.sparse.mm(matrix, h), config.tail_dropout, self.training)
        return h if encoder.jumps is None else encoder.jumps * h


def sparse(edges: Tensor, values: Tensor, nodes: int) -> Tensor:
    return torch.sparse_coo_tensor(edges, values, (nodes, nodes), check_invariants=False).coalesce()


def cora(batch: int) -> Case | None:
    folder = data_folder()
    if folder is None or not (folder / "cora").is_dir():
        return None
    graph = planetoid("cora")
    config = published_ncn("cora", 1433).predictor
    x = (graph.x > 0).float()
    return Case.of("cora", Adjacency.of(graph), x, config, batch)


def random(nodes: int, batch: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(nodes, (2, DEGREE * nodes // 2), generator=generator)
    config = NCNCConfig(EncoderConfig(FEATURES, convolution="pure-gcn", layers=1, dim=64))
    x = torch.randn(nodes, FEATURES, generator=generator)
    return Case.of(
        f"{nodes:,} nodes", Adjacency.of(undirected(ends, nodes), nodes), x, config, batch
    )


def step(model: nn.Module, loss: Tensor) -> Tensor:
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return loss.detach()


def loss_of(logits: Tensor) -> Tensor:
    right, wrong = logits.chunk(2)
    return F.softplus(-right).mean() + F.softplus(wrong).mean()


def calls(case: Case) -> dict[str, Call]:
    torch.manual_seed(0)
    plain = NCN(case.config)
    completing = NCNC(replace(case.config, depth=1))
    peer = Products(plain)
    pairs = torch.cat([case.links, case.others], 1)
    edges = case.graph.edge_index

    def ours(model: NCN) -> Tensor:
        graph = case.graph.without(case.links)
        return step(model, loss_of(model.score(graph, case.x, pairs)))

    def theirs() -> Tensor:
        own = torch.cat([case.links, case.links.flip(0)], 1)
        keys, gone = (pair[0] * len(case.x) + pair[1] for pair in (edges, own))
        seen = edges[:, ~torch.isin(keys, gone)]
        return step(peer, loss_of(peer.score(seen, case.x, pairs)))

    for model in (plain, peer):
        model.eval()
    torch.testing.assert_close(ours(plain), theirs())
    for model in (plain, peer):
        model.train()
    return {
        "NCN": (lambda: ours(plain), nothing),
        "sparse products": (theirs, nothing),
        "NCNC": (lambda: ours(completing), nothing),
    }


def nothing() -> None: ...


def steps(name: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """A row for each way on one graph."""
    case = cora(1152) if name == "cora" else random(NODES // 10 if quick else NODES, BATCH)
    if case is None:
        return []
    own = calls(case)
    base, multiples = beside(own.pop("NCN"), own, rounds, gpu=False)
    batches = case.graph.num_edges // case.links.shape[1]
    facts = {"graph": case.name, "edges": case.graph.num_edges, "batches": batches}
    rows = [facts | {"way": "NCN", "step": base, "ratio": 1.0}]
    for way, found in multiples.items():
        ratio = statistics.median(found)
        rows.append(facts | {"way": way, "step": base * ratio, "ratio": ratio})
    return rows


def overlaps(most: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of neighbours that are touched."""
    case = random(NODES, BATCH)
    graph, rows = case.graph, []
    degree = float(graph.degrees[graph.edges].double().sum(0).mean())
    generator = torch.Generator().manual_seed(1)
    for touched in (count for count in TOUCHED if count <= most):
        drawn = torch.randint(graph.num_edges, (round(touched / degree),), generator=generator)
        pairs = graph.edges[:, drawn].contiguous()
        row: dict[str, Any] = {"touched": int(graph.degrees[pairs].sum())}
        for what, call in (
            ("shared", lambda pairs=pairs: common_neighbours(graph, pairs).nodes),
            ("shared and own", lambda pairs=pairs: overlap(graph, pairs).left.nodes),
        ):
            times = repeats(call, nothing, False)
            took = [seconds(call, nothing, times, False) for _ in range(rounds)]
            row[what] = statistics.median(took)
        rows.append(row)
    return rows


def slope(rows: Sequence[dict[str, Any]], what: str) -> float:
    """The power of the touched neighbours with which seconds grow, over the last two rows."""
    (a, b), (c, d) = ((row["touched"], row[what]) for row in rows[-2:])
    return math.log(d / b) / math.log(c / a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and fewer nodes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1 if given.quick else 5
    trained = [
        row
        for name in ("cora", "random")
        for row in in_a_process(1, steps, name, given.quick, rounds)
    ]
    found = in_a_process(1, overlaps, TOUCHED[-2 if given.quick else -1], rounds)
    show(
        "A step of training",
        ("graph", "edges", "way", "step, s", "epoch, s", "ratio"),
        [
            (
                *(row["graph"], f"{row['edges']:,}", row["way"], f"{row['step']:.3f}"),
                *(f"{row['step'] * row['batches']:.2f}", f"{row['ratio']:.2f}"),
            )
            for row in trained
        ],
    )
    ways = ("shared", "shared and own")
    show(
        "The overlap operator",
        ("touched", *(f"{way}, ms" for way in ways), *(f"{way}, ns each" for way in ways)),
        [
            (
                f"{row['touched']:,}",
                *(f"{row[way] * 1e3:.2f}" for way in ways),
                *(f"{row[way] * 1e9 / row['touched']:.1f}" for way in ways),
            )
            for row in found
        ],
    )
    for way in ways:
        print(f"{way}: seconds grow with the power {slope(found, way):.2f}")
    write(given.json, rounds=rounds, steps=trained, overlaps=found)


if __name__ == "__main__":
    main()
