"""Every router with every kind of experts and every loss, in a tiny decoder: what comes of it.

`python tests/compositions.py` writes the table of docs/compositions.md; a test holds the page
against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from polypath.errors import InputError
from polypath.experts.activations import ACTIVATIONS
from polypath.language import RoutedLayers, attach, from_pretrained, save_pretrained
from polypath.language.config import LAYER_LOSSES, LOSSES
from polypath.language.options import READS
from polypath.routing import given, losses, record, routed_layers, update_biases

PAGE = Path(__file__).parent.parent / "docs" / "compositions.md"
VOCABULARY, LENGTH, LAYERS = 23, 6, 3

# What a router needs beside its defaults to be itself in a model this small.
OWN: dict[str, dict[str, Any]] = {
    "recurrent": {"options": {"state": 5}},
    "reuse": {"options": {"start": 1, "end": 3}},
    "pregated": {"options": {"vocabulary": VOCABULARY, "width": 8, "heads": 2}},
}

Combination = tuple[str, str, str | None]


def combinations() -> Iterator[Combination]:
    """Router, kind of experts, loss or None."""
    return product(READS, ACTIVATIONS, [None, *LOSSES, *LAYER_LOSSES])


def described(router: str, kind: str, loss: str | None) -> RoutedLayers:
    own = {"num_experts": 4, "hidden": 6, "kind": kind, **OWN.get(router, {})}
    return RoutedLayers(router, losses={} if loss is None else {loss: 0.1}, **own)


def host() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def text(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (4, LENGTH + 1), generator=generator)


def tried(router: str, kind: str, loss: str | None) -> str | None:
    """None where the combination trains, records, saves and loads; else the line that refuses it.

    Raises AssertionError where it does neither.
    """
    try:
        model = attach(host(), described(router, kind, loss))
    except InputError as error:
        assert "\n" not in str(error)
        return str(error).split("; ")[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, loss)
    unmoved = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert not any(".experts." in name for name in unmoved), unmoved
    model.eval()
    with record(model) as routes, torch.no_grad():
        logits = model(text(9)[:, :-1]).logits
    assert len(routes) == LAYERS and all(len(r) == 4 * LENGTH for r in routes.joined().values())
    with TemporaryDirectory() as folder, torch.no_grad():
        save_pretrained(model, folder)
        again = from_pretrained(folder)
        assert len(routed_layers(again)) == LAYERS
        assert torch.equal(again(text(9)[:, :-1]).logits, logits)
    return None


def train(model: LlamaForCausalLM, loss: str | None) -> None:
    """Four steps; the loss is there, finite, and has a gradient."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(4):
        batch = text(step)
        with given(step=step):
            logits = model(batch[:, :-1]).logits
        auxiliary = losses(model)
        assert set(auxiliary) == ({loss} if loss else set())
        task = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        whole = task + sum(auxiliary.values())
        assert whole.isfinite()
        whole.backward()
        optimiser.step()
        optimiser.zero_grad()
        update_biases(model)


def page(outcomes: dict[Combination, str | None]) -> str:
    """The table of the documentation: a row a router, a column a loss, refusals below."""
    names = ["no loss", *LOSSES, *LAYER_LOSSES]
    reasons: list[str] = []
    lines = [
        "# What goes with what",
        "",
        "Each cell is a tiny Llama whose feed-forward layers are routed: it trains for four steps,",
        "records its routes, is saved, loaded, and gives the same logits. A number is the line",
        "that refuses the combination. All hold for each kind of experts:",
        f"{', '.join(ACTIVATIONS)}.",
        "Written by `python tests/compositions.py` and held by a test.",
        "",
        "| router | " + " | ".join(names) + " |",
        "|" + " --- |" * (len(names) + 1),
    ]
    for router in READS:
        cells = []
        for loss in [None, *LOSSES, *LAYER_LOSSES]:
            found = {outcomes[router, kind, loss] for kind in ACTIVATIONS}
            assert len(found) == 1, f"{router} with {loss} depends on the kind of experts: {found}"
            (reason,) = found
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            cells.append("✓" if reason is None else f"({reasons.index(reason) + 1})")
        lines.append(f"| {router} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page({c: tried(*c) for c in combinations()}), encoding="utf-8")
