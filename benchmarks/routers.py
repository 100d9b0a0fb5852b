"""What each router's layers cost beside plain top-k layers with the same experts.

    python benchmarks/routers.py [--quick] [--device cuda] [--threads N] [--json FILE]

A contender is a stack of two layers, each told the routing of the one below; the base is the plain
stack, timed just before and just after. Forward and backward together, with the losses that a
router is trained with. In CPU seconds of the process (wall seconds on a GPU); medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import Call, beside, in_a_process, write
from torch import Tensor, nn

from polypath.language import RoutedLayers, build_stack
from polypath.routing import Attention, RoutingContext, losses, record

SEQUENCES, LENGTH, DIM, HIDDEN, EXPERTS, K, LAYERS = 8, 512, 512, 1024, 16, 2, 2
BALANCED = {"load_balance": 0.01}


@dataclass(frozen=True)
class Contender:
    """Routed layers, what they are told, and the ratio that is aimed at."""

    routed: RoutedLayers
    context: Callable[[torch.device], dict[str, Any]] = lambda device: {}
    recorded: bool = False
    at_most: float | None = None


def routed(router: str = "top-k", **values: Any) -> RoutedLayers:
    sizes = {"num_experts": EXPERTS, "k": K, "hidden": HIDDEN, "losses": BALANCED}
    return RoutedLayers(router, **sizes | values)


def attended(device: torch.device) -> dict[str, Any]:
    """An attention of eight heads, as a host would hand it on."""
    heads, width = 8, DIM // 8
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=device).triu(1)
    scores = normal(SEQUENCES, heads, LENGTH, LENGTH).masked_fill(later, -torch.inf)
    probabilities, values = scores.softmax(-1), normal(SEQUENCES, heads, LENGTH, width)
    projection = normal(DIM, DIM) / DIM**0.5
    output = (probabilities @ values).transpose(1, 2).flatten(2) @ projection.T
    return {"attention": Attention(probabilities, values, projection, output)}


def in_sequences(length: int) -> Callable[[torch.device], dict[str, Any]]:
    """The same things as sequences of another length."""
    return lambda device: {"shape": (SEQUENCES * LENGTH // length, length)}


def similar(length: int, window: int | None = None) -> Contender:
    return Contender(routed("similarity", options={"window": window}), in_sequences(length))


CONTENDERS = {
    "top-k": Contender(routed()),
    "top-k, recorded": Contender(routed(), recorded=True, at_most=1.10),
    "coupling loss": Contender(routed(losses={**BALANCED, "coupling": 1.0}), at_most=1.05),
    "orthogonality loss": Contender(routed(losses={**BALANCED, "orthogonality": 0.01})),
    "autonomous": Contender(routed("autonomous")),
    "recurrent": Contender(routed("recurrent"), at_most=1.25),
    "reuse": Contender(routed("reuse", options={"group": 2, "growth": "none"}), at_most=1.10),
    "dynamic, percentile of k": Contender(
        routed("dynamic", options={"value": (EXPERTS - 1 - K + 0.5) / (EXPERTS - 1)}),
        at_most=1.10,
    ),
    "dynamic, mass": Contender(routed("dynamic", options={"rule": "mass", "most": K})),
    "attention": Contender(routed("attention"), attended, at_most=1.25),
    "attention, all heads": Contender(
        routed("attention", options={"heads": "all"}), attended, at_most=1.25
    ),
    **{f"similarity, T {length}": similar(length) for length in (256, 512, 1024, 2048, 4096)},
    **{
        f"similarity, window 128, T {length}": similar(length, 128)
        for length in (256, 512, 1024, 2048, 4096)
    },
}


class Stack(nn.Module):
    """The layers one after another on the same things, each told the routing below it."""

    def __init__(self, contender: Contender) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(build_stack(contender.routed, DIM, HIDDEN, LAYERS))
        self.contender = contender

    def forward(self, x: Tensor) -> Tensor:
        told = {"shape": (SEQUENCES, LENGTH), "step": 0, **self.contender.context(x.device)}
        previous, y = None, x
        for layer in self.layers:
            y = y + layer(x, RoutingContext(previous=previous, **told))
            previous = layer.last
        return y

    def step(self, x: Tensor, grad: Tensor) -> Tensor:
        """Forward, backward with the losses, and recorded where that is measured."""
        if self.contender.recorded:
            with record(self):
                y = self(x)
        else:
            y = self(x)
        torch.autograd.backward([y, *losses(self).values()], [grad, *[None] * len(losses(self))])
        return y.detach()

    def call(self, x: Tensor, grad: Tensor) -> Call:
        return lambda: self.step(x, grad), lambda: self.zero_grad(set_to_none=True)


def measure(device: str, rounds: int, only: list[str]) -> list[dict[str, Any]]:
    """One row for each contender."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SEQUENCES * LENGTH, DIM, generator=generator).to(device).requires_grad_()
    grad = torch.randn(x.shape, generator=generator).to(device)
    base = Stack(Contender(routed())).to(device).call(x, grad)
    rows = []
    for name, contender in CONTENDERS.items():
        if only and not any(word in name for word in only):
            continue
        call = Stack(contender).to(device).call(x, grad)
        took, multiples = beside(base, {name: call}, rounds, device == "cuda")
        found = multiples[name]
        rows.append(
            {
                "router": name,
                "ratio": statistics.median(found),
                "spread": max(found) - min(found),
                "at_most": contender.at_most,
                "base": took,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="contenders whose name has this")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rounds = 3 if given.quick else 7
    rows = in_a_process(given.threads, measure, given.device, rounds, given.only)
    table = Table(title="forward + backward over plain top-k layers", header_style="bold")
    for column in ("router", "ratio", "spread", "at most"):
        table.add_column(column, justify="left" if column == "router" else "right")
    for row in rows:
        goal = "" if row["at_most"] is None else f"{row['at_most']:.2f}"
        table.add_row(row["router"], f"{row['ratio']:.3f}", f"{row['spread']:.3f}", goal)
    Console().print(table)
    write(given.json, given.device, rounds=rounds, rows=rows)


if __name__ == "__main__":
    main()
