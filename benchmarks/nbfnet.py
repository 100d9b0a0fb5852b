"""A training step of NBFNet beside the same network as torch-geometric's users write it.

    python benchmarks/nbfnet.py FOLDER [--batches 1 2 4 16] [--threads 2] [--rounds 5] [--json FILE]

FOLDER has FB15k-237 in OpenKE's format. Both take the same steps on the same parameters: PNA over
products, six layers of width 32, 32 negatives, edges of the batch removed. The peer is a
`MessagePassing` that has the message of every edge and all scaled statistics in memory; the two
losses and gradients are compared first. Each is timed in processes of its own, whose greatest
memory is told, less what was taken before the first step. A peer for which the machine has no
memory is killed, and told to be. The floor is the time to read the messages' inputs and to write
what they add to, once, forward and backward, at the speed at which this machine copies memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import write
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from polypath.graphs import Incoming
from polypath.graphs.knowledge_splits import KnowledgeSplit
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.triple_files import read_openke
from polypath.graphs.triples import KnowledgeGraph, Known, Removal
from polypath.training.checkpoint import load_state, save_state
from polypath.training.triples import TripleTraining, batches, seen, self_adversarial_loss

DIM, LAYERS = 32, 6


class PeerLayer(MessagePassing):
    """The layer of a `polypath` model, with the same parameters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(aggr=["sum", "max", "min"])
        self.layer = layer

    def forward(
        self, h: Tensor, edge_index: Tensor, types: Tensor, query: Tensor, boundary: Tensor
    ) -> Tensor:
        values = self.layer.relation(query).view(len(query), -1, query.shape[1])
        messages = h.index_select(0, edge_index[0]) * values.transpose(0, 1)[types]
        nodes = torch.arange(len(h))
        index = torch.cat([edge_index[1], nodes])
        inputs = torch.cat([messages, boundary]).flatten(1)
        total, high, low = self.aggr_module(inputs, index, dim_size=len(h)).chunk(3, 1)
        square = torch.zeros_like(total).index_add(0, index, inputs * inputs)
        degrees = torch.bincount(index, minlength=len(h))[:, None]
        mean = total / degrees
        deviation = (square / degrees - mean * mean).clamp_min(1e-6).sqrt()
        logs = degrees.log()
        scale = logs / logs.mean()
        scales = torch.stack([torch.ones_like(scale), scale, 1 / scale.clamp_min(1e-2)])
        found = torch.stack([mean, high, low, deviation]).view(4, len(h), len(query), -1)
        scaled = [part * factor[..., None] for factor in scales for part in found]
        z = self.layer.combine(torch.cat([h, *scaled], -1))
        return self.layer.norm(z).relu() + h


class Peer(nn.Module):
    """`NBFNet` of unfused layers."""

    def __init__(self, model: NBFNet) -> None:
        super().__init__()
        self.query, self.mlp = model.query, model.mlp
        self.layers = nn.ModuleList(PeerLayer(layer) for layer in model.layers)

    def forward(self, edges: Incoming, heads: Tensor, relations: Tensor, tails: Tensor) -> Tensor:
        index = torch.stack([edges.sources, edges.targets])
        query, rows = self.query(relations), torch.arange(len(heads))
        boundary = query.new_zeros(edges.num_nodes, len(heads), DIM)
        h = boundary = boundary.index_put((heads, rows), query)
        for layer in self.layers:
            h = layer(h, index, edges.types, query, boundary)
        found = h[tails, rows[:, None].expand_as(tails)]
        return self.mlp(torch.cat([found, query[:, None].expand_as(found)], -1))[..., 0]


def prepare(folder: Path, path: Path) -> None:
    """Keep the facts as tensors: to read text takes more memory than a step."""
    train = read_openke(folder).train
    sizes = {"entities": train.num_nodes, "relations": len(train.relations)}
    save_state(path, {"facts": train.facts}, sizes)


class Work:
    """Batches of FB15k-237, and steps on them."""

    def __init__(self, path: Path, batch: int) -> None:
        tensors, sizes = load_state(path)
        facts = tensors["facts"]
        names = ([str(n) for n in range(sizes[kind])] for kind in ("entities", "relations"))
        graph = KnowledgeGraph(facts, *names)
        split = KnowledgeSplit(graph, facts[:0], graph, facts[:0], facts[:0])
        torch.manual_seed(0)
        self.model = NBFNet(NBFNetConfig(graph.num_types, DIM, LAYERS))
        self.training = TripleTraining(batch=batch)
        self.removal = Removal(graph.edges())
        generator = torch.Generator().manual_seed(0)
        self.drawn = batches(split, Known(graph, facts), self.training, generator)

    def loss(self, model: nn.Module) -> Tensor:
        batch = next(self.drawn)
        edges = seen(self.removal, batch, self.training)
        scores = model(edges, batch.heads, batch.relations, batch.tails)
        return self_adversarial_loss(scores).mean()


def resident(which: str) -> int:
    """Memory of this process in bytes: VmRSS now, VmHWM at its highest since `forget_highest`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def forget_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def steps(path: Path, batch: int, rounds: int, peer: bool) -> dict[str, Any]:
    """Seconds of steps, one before that not counted, and the memory that they took."""
    work = Work(path, batch)
    model = Peer(work.model) if peer else work.model
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    forget_highest()
    before, wall = resident("VmRSS"), []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        loss = work.loss(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        wall.append(time.perf_counter() - began)
    edges, nodes = len(work.removal.edges.sources), work.removal.edges.num_nodes
    return {
        "seconds": wall[1:],
        "memory": resident("VmHWM") - before,
        "floor": floor(edges, nodes, batch),
    }


def floor(edges: int, nodes: int, batch: int) -> float:
    """Seconds to move what all layers' messages have to read and write, forward and backward."""
    size = DIM * batch * 4
    # Forward: a state for each edge. Backward: again, and the gradient, read and written.
    moved = LAYERS * (edges * size * 4 + nodes * size * 10)
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        took.append(time.perf_counter() - began)
    return moved / (2 * source.numel() * 4 / min(took[1:]))


def compared(path: Path) -> float:
    """The greatest difference of gradients over their size; raises where losses differ."""
    grads, losses = [], []
    for peer in (False, True):
        work = Work(path, 2)
        loss = work.loss(Peer(work.model) if peer else work.model)
        grads.append(torch.autograd.grad(loss, list(work.model.parameters())))
        losses.append(float(loss.detach()))
    if abs(losses[0] - losses[1]) > 1e-4:
        raise SystemExit(f"the peer's loss is {losses[1]}, not {losses[0]}")
    pairs = zip(*grads, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-9)) for a, b in pairs)


def in_process(
    given: argparse.Namespace, path: Path, batch: int, peer: bool
) -> dict[str, Any] | None:
    """What a process of its own tells; None where it was killed for want of memory."""
    command = [sys.executable, __file__, str(path), "--rounds", str(given.rounds)]
    command += ["--threads", str(given.threads), "--one", str(batch), *["--peer"] * peer]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0 or "can't allocate memory" in done.stderr:
        return None
    raise SystemExit(done.stderr[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(steps(given.folder, given.one, given.rounds, given.peer)))
        return
    path = Path(tempfile.mkdtemp()) / "facts.safetensors"
    prepare(given.folder, path)
    print(f"gradients differ by {compared(path):.1e} of their size at most")
    table = Table(title=f"FB15k-237, a training step, {given.threads} threads")
    for column in ("batch", "", "seconds", "memory", "floor", "times faster", "of the memory"):
        table.add_column(column, justify="left" if not column else "right")
    rows = []
    for batch in given.batches:
        found = {
            name: in_process(given, path, batch, peer)
            for name, peer in (("polypath", False), ("messages in memory", True))
        }
        ours = found["polypath"] or {}
        for name, one in found.items():
            if one is None:
                table.add_row(str(batch), name, "out of memory", *[""] * 4)
                continue
            middle = statistics.median(one["seconds"])
            ratios = ["", ""]
            if one is not ours:
                ratios = [
                    f"{middle / statistics.median(ours['seconds']):.1f}",
                    f"1/{one['memory'] / ours['memory']:.1f}",
                ]
            cells = [f"{middle:.2f}", f"{one['memory'] / 1e6:,.0f} MB", f"{one['floor']:.2f}"]
            table.add_row(str(batch), name, *cells, *ratios)
        rows.append({"batch": batch, **found})
    Console().print(table)
    write(given.json, threads=given.threads, rows=rows)


if __name__ == "__main__":
    main()
