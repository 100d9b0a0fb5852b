"""The routed layer beside what users would pick instead, as multiples of one dense product.

    python benchmarks/moe_layer.py [--quick | --wide] [--device cuda] [--threads N] [--json FILE]

Every contender is a whole block, router and experts, with the same weights and the same input. The
floor is one dense product of the same multiply-adds as the experts' products, and three of them
for forward and backward. Rounds are interleaved, in CPU seconds of the process (in wall seconds on
a GPU); a multiple is the median over rounds of a contender's time over that of the floor just
before and after it, so that other work on the machine disturbs little. It is printed only after all
outputs and gradients have been seen to agree. Each size has a process of its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timing import Call, beside, in_a_process, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MixtralConfig, OlmoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from polypath.experts import FeedForwardExperts
from polypath.routing import MoE, TopKRouter

OURS = "polypath"
ENGINES = ("stream", "grouped", "reference")
PEERS = {
    "olmoe": (OlmoeConfig, OlmoeSparseMoeBlock),
    "mixtral": (MixtralConfig, MixtralSparseMoeBlock),
}
MARKS = {"eager": None, "batched_mm": "bmm", "grouped_mm": "_grouped_mm"}  # the operators they call
COPIES = 1 << 30  # bytes of copied weights up to which batched_mm takes part
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Size:
    experts: int
    dim: int
    hidden: int
    k: int
    tokens: int
    dtype: str = "float32"
    skewed: bool = False

    def __str__(self) -> str:
        text = f"E={self.experts} d={self.dim} ff={self.hidden} k={self.k} T={self.tokens}"
        return text + " bf16" * (self.dtype == "bfloat16") + " skewed" * self.skewed


MAIN = [
    Size(64, 512, 128, 8, 4096),
    Size(16, 512, 1024, 2, 4096, "bfloat16"),
    Size(16, 512, 1024, 2, 4096, skewed=True),
    Size(16, 512, 1024, 2, 256),
    Size(128, 256, 64, 8, 2048),
    Size(8, 64, 128, 2, 512),
]
WIDE = [
    Size(experts, dim, hidden, k, tokens, dtype, skewed)
    for experts, dim, hidden, k, tokens, skewed in [
        (8, 64, 128, 1, 512, False),
        (8, 64, 128, 2, 512, False),
        (16, 512, 1024, 2, 1, False),
        (16, 512, 1024, 2, 8, False),
        (64, 512, 128, 8, 1, False),
        (64, 512, 128, 8, 8, False),
        (16, 512, 1024, 1, 4096, False),
        (16, 512, 1024, 2, 4096, False),
        (16, 512, 1024, 8, 1024, False),
        (64, 512, 128, 8, 4096, True),
        (128, 256, 64, 8, 2048, False),
        (128, 256, 64, 8, 2048, True),
        (64, 1024, 512, 2, 8192, False),
        (64, 1024, 512, 8, 2048, False),
    ]
    for dtype in ("float32", "bfloat16")
]


class Naive(nn.Module):
    """The loop most people write: for each expert, find its tokens, compute, add."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.k = size.k
        self.gate = nn.Parameter(torch.empty(size.experts, size.dim))
        self.gate_up_proj = nn.Parameter(torch.empty(size.experts, 2 * size.hidden, size.dim))
        self.down_proj = nn.Parameter(torch.empty(size.experts, size.dim, size.hidden))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        weights, chosen = F.linear(x, self.gate).float().softmax(-1).topk(self.k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        y = torch.zeros_like(x)
        for expert in range(len(self.gate_up_proj)):
            tokens, slots = torch.where(chosen == expert)
            gate, up = F.linear(x[tokens], self.gate_up_proj[expert]).chunk(2, -1)
            out = F.linear(F.silu(gate) * up, self.down_proj[expert])
            y.index_add_(0, tokens, out * weights[tokens, slots, None])
        return y[None]


class Operators(TorchDispatchMode):
    """The names of the operators that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def inputs(size: Size, device: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x (1, T, D), the output's gradient, and the weights (router, gate_up, down).

    Scores are read off the first E coordinates of x, where each token has the steps of one ladder
    in an order of its own, exact in bfloat16: so all contenders choose the same experts.
    """
    seed = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seed)

    liking = normal(size.tokens, size.experts)
    if size.skewed:  # one expert serves everything, the others less and less
        liking -= 1.5 * torch.arange(1, size.experts + 1).log()
        liking[:, 0] = math.inf
    ladder = liking.argsort(-1).argsort(-1) * (8 / size.experts)
    x = normal(1, size.tokens, size.dim)
    x[0, :, : size.experts] = ladder - ladder.mean()
    router = torch.eye(size.experts, size.dim)
    gate_up = normal(size.experts, 2 * size.hidden, size.dim) / math.sqrt(size.dim)
    down = normal(size.experts, size.dim, size.hidden) / math.sqrt(size.hidden)
    place = {"dtype": getattr(torch, size.dtype), "device": device}
    weights = {"router": router, "gate_up": gate_up, "down": down}
    grad = normal(1, size.tokens, size.dim)
    return x.to(**place), grad.to(**place), {name: w.to(**place) for name, w in weights.items()}


def named(block: nn.Module) -> dict[str, nn.Parameter]:
    """A block's parameters under the names of `inputs`."""
    parts = {"gate_up_proj": "gate_up", "down_proj": "down"}
    return {parts.get(name.split(".")[-1], "router"): p for name, p in block.named_parameters()}


def blocks(size: Size, weights: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Every contender by name, with the given weights."""
    made: dict[str, nn.Module] = {}
    for engine in (None, *ENGINES):
        router = TopKRouter(size.dim, size.experts, size.k)
        experts = FeedForwardExperts(size.experts, size.dim, size.hidden, engine=engine)
        made[f"{OURS} {engine}" if engine else OURS] = MoE(router, experts)
    made["naive"] = Naive(size)
    copied = size.tokens * size.k * 3 * size.dim * size.hidden * weights["down"].element_size()
    for peer, (config, block) in PEERS.items():
        for implementation in MARKS:
            if implementation == "batched_mm" and copied > COPIES:
                continue
            made[f"{peer} {implementation}"] = block(configured(config, size, implementation))
    for contender in made.values():
        for name, parameter in named(contender).items():
            parameter.data = weights[name].clone()
    return made


def configured(config: type, size: Size, implementation: str):
    made = config(
        num_experts=size.experts,
        hidden_size=size.dim,
        intermediate_size=size.hidden,
        num_experts_per_tok=size.k,
        norm_topk_prob=True,
    )
    made._experts_implementation = implementation
    return made


class Run:
    """A block's passes over one input."""

    def __init__(self, block: nn.Module, x: Tensor, grad: Tensor) -> None:
        self.block = block
        self.x = x.clone().requires_grad_()
        self.grad = grad

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.block(self.x)

    def forward_backward(self) -> Tensor:
        y = self.block(self.x)
        y.backward(self.grad)
        return y.detach()

    def forget(self) -> None:
        """Drop gradients, so that the next pass makes them anew."""
        self.x.grad = None
        for parameter in self.block.parameters():
            parameter.grad = None

    def results(self) -> dict[str, Tensor]:
        """The output and every gradient by name."""
        y = self.forward_backward()
        found = {"y": y, "x": self.x.grad}
        found |= {name: p.grad for name, p in named(self.block).items()}
        self.forget()
        return found


def verify(runs: dict[str, Run], size: Size) -> dict[str, float]:
    """The largest relative distance of each contender's results from the naive loop in float32."""
    naive = runs["naive"]
    double = Naive(size).to(naive.x.device)
    for name, parameter in named(double).items():
        parameter.data = named(naive.block)[name].detach().float()
    truth = Run(double, naive.x.detach().float(), naive.grad.float()).results()
    bound = 3e-2 if size.dtype == "bfloat16" else 1e-5
    distances = {}
    for contender, run in runs.items():
        found = run.results()
        away = {n: float((found[n].float() - t).norm() / t.norm()) for n, t in truth.items()}
        distances[contender] = max(away.values())
        if not distances[contender] <= bound:
            sys.exit(f"{size}: {contender} is wrong, relative distances {away}; nothing is timed")
        check_implementation(contender, run)
    return distances


def check_implementation(contender: str, run: Run) -> None:
    """Exit unless a transformers block really runs the implementation that its name says."""
    peer, _, implementation = contender.partition(" ")
    if peer not in PEERS:
        return
    with Operators() as operators:
        run.forward()
    for name, mark in MARKS.items():
        if mark and (mark in operators.seen) != (name == implementation):
            sys.exit(f"{contender} does not run {implementation}: it calls {operators.seen}")


def floor(size: Size, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One product with the multiply-adds of the experts' three, and what its gradients cost."""
    rows = x.new_ones(size.tokens * size.k, size.dim)
    weight = x.new_ones(size.dim, 3 * size.hidden)
    out, back = rows @ weight, torch.empty_like(weight)

    def forward() -> Tensor:
        return torch.mm(rows, weight, out=out)

    def both() -> Tensor:
        forward()
        torch.mm(rows.T, out, out=back)
        return torch.mm(out, weight.T, out=rows)

    return {"forward": forward, "forward+backward": both}


def measure(size: Size, device: str, rounds: int, only: list[str]) -> list[dict]:
    """One row of results for each pass."""
    gpu = device == "cuda"
    x, grad, weights = inputs(size, device)
    runs = {name: Run(block, x, grad) for name, block in blocks(size, weights).items()}
    if only:
        runs = {n: r for n, r in runs.items() if n == "naive" or any(o in n for o in only)}
    distances = verify(runs, size)
    floors = floor(size, x)
    rows = []
    for which in PASSES:
        calls: dict[str, Call] = {
            name: (run.forward if which == "forward" else run.forward_backward, run.forget)
            for name, run in runs.items()
        }
        base, multiples = beside((floors[which], lambda: None), calls, rounds, gpu)
        row = asdict(size) | {"pass": which, "floor": base}
        row["ratios"] = {name: statistics.median(found) for name, found in multiples.items()}
        row["spread"] = {name: max(found) - min(found) for name, found in multiples.items()}
        rows.append(row)
    return [row | {"distances": distances} for row in rows]


def show(console: Console, rows: list[dict]) -> None:
    """Multiples of the floor, and ours over the fastest peer."""
    contenders = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    table = Table(title="multiples of the floor", header_style="bold")
    for header in ("size", "pass", "floor ms", "ours / best peer", *contenders):
        table.add_column(
            header, justify="left" if header == "size" else "right", no_wrap=header == "size"
        )
    for row in rows:
        ratios = row["ratios"]
        size = Size(**{name: row[name] for name in Size.__dataclass_fields__})
        best = min(value for name, value in ratios.items() if not name.startswith(OURS))
        share = f"{ratios[OURS] / best:.2f}" if OURS in ratios else ""
        cells = [f"{ratios[name]:.2f}" if name in ratios else "" for name in contenders]
        label = "fwd" if row["pass"] == "forward" else "f+b"
        table.add_row(str(size), label, f"{row['floor'] * 1e3:.2f}", share, *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--wide", action="store_true", help="the wider set of sizes as well")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", help="rows by number, all by default")
    parser.add_argument("--only", nargs="*", default=[], help="contenders whose name has this")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=240)
    rounds = 3 if given.quick else given.rounds
    sizes = MAIN + WIDE * given.wide
    rows = []
    for number, size in enumerate(sizes):
        if given.sizes and number not in given.sizes:
            continue
        console.print(f"{size}: checking, then {rounds} rounds", style="dim")
        rows += in_a_process(given.threads, measure, size, given.device, rounds, given.only)
    show(console, rows)
    write(given.json, given.device, rounds=rounds, rows=rows)


if __name__ == "__main__":
    main()
