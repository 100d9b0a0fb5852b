"""What converted models cost beside the model that they were made of: prefill and decoding.

    python benchmarks/surgery.py [--quick] [--device cuda] [--threads N] [--json FILE]

A contender is a whole language model with its weights; the base is the one that it was made of,
timed just before and just after. Prefill: a prompt of 256 tokens. Decoding: one token, or one
token each of 16 prompts, behind 256. In CPU seconds of the process (wall seconds on a GPU);
medians over rounds. The weights are random: routers spread tokens evenly, as trained ones should.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import Call, beside, in_a_process, write
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM

from polypath import attach
from polypath.surgery.calibration import calibrate
from polypath.surgery.compress import compressed, shed, split_experts
from polypath.surgery.convert import convert
from polypath.surgery.factorllm import FactorLLM
from polypath.surgery.granular import Granular
from polypath.surgery.merge import Merge, merge, merge_to_native
from polypath.surgery.readme import ReadMe
from polypath.surgery.report import Size

VOCABULARY, DIM, HIDDEN, LAYERS, PROMPT = 2048, 1024, 4096, 4, 256
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2 * PROMPT,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Contender:
    """What is made of a model, and the ratio that its paper claims for its time, if any."""

    make: Callable[[Any], Any]
    claimed: float | None = None


def converted(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        convert(model, method(model))
        return model

    return make


def domains(model: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (4, 2, 128), generator=generator)
    return {f"domain {n}": calibrate(model, [own]) for n, own in enumerate(ids)}


def merged(model: Any) -> Any:
    merge(model, seen(model), Merge(4))
    return model


def native(model: Any) -> Any:
    return merge_to_native(model, seen(model), Merge(4))[0]


def small(model: Any) -> Any:
    merge(model, seen(model), Merge(4))
    split_experts(model, 32)
    for one in compressed(model).values():
        with torch.no_grad():
            one.sparse[len(one.sparse) // 10 :] = 0
    shed(model)
    return model


def seen(model: Any) -> Any:
    generator = torch.Generator().manual_seed(4)
    return calibrate(attach(model), [torch.randint(VOCABULARY, (4, 128), generator=generator)])


FROM_DENSE = {
    "FactorLLM, 2 of 4": Contender(converted(lambda model: FactorLLM(4, 2))),
    "FactorLLM, 1 of 4": Contender(converted(lambda model: FactorLLM(4, 1)), claimed=0.70),
    "Read-ME, half of 4 domains": Contender(
        converted(lambda model: ReadMe(domains(model), width=128)), claimed=0.81
    ),
    "granular, 4 copies in 2": Contender(converted(lambda model: Granular(4, 2))),
}
FROM_ROUTED = {
    "merged, 16 to 4": Contender(merged, claimed=1.0),
    "merged, router pruned": Contender(native),
    "merged and compressed": Contender(small, claimed=3.83 / 4.65),
}


def host(routed: bool) -> Any:
    torch.manual_seed(0)
    if routed:
        sizes = {"intermediate_size": 1024, "num_experts": 16, "num_experts_per_tok": 2}
        return attach(OlmoeForCausalLM(OlmoeConfig(**SHAPE, **sizes)).eval())
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=HIDDEN)).eval()


def calls(model: Any, device: str) -> Iterator[tuple[str, Call]]:
    """What is timed of a model, by name."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(VOCABULARY, (16, PROMPT), generator=generator).to(device)
    yield "prefill", (lambda: run(model, prompts[:1]), lambda: None)
    for batch in (1, 16):
        cache = run_with_cache(model, prompts[:batch])
        new = prompts[:batch, :1]

        def step(cache: Any = cache, new: Tensor = new) -> Tensor:
            return run(model, new, cache)

        def back(cache: Any = cache) -> None:
            cache.crop(-1)

        yield f"decoding {batch}", (step, back)


@torch.no_grad()
def run(model: Any, ids: Tensor, cache: Any = None) -> Tensor:
    found = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
    return found.logits


@torch.no_grad()
def run_with_cache(model: Any, ids: Tensor) -> Any:
    return model(input_ids=ids, use_cache=True).past_key_values


def measure(device: str, rounds: int, only: list[str]) -> list[dict[str, Any]]:
    """One row for each contender and each way to run it."""
    rows = []
    for routed, contenders in ((False, FROM_DENSE), (True, FROM_ROUTED)):
        base = host(routed).to(device)
        before = Size.of(base)
        for name, contender in contenders.items():
            if only and not any(word in name for word in only):
                continue
            model = contender.make(copy.deepcopy(base).cpu()).eval().to(device)
            after = Size.of(model)
            pairs = zip(calls(base, device), calls(model, device), strict=True)
            for (what, ours), (_, theirs) in pairs:
                took, found = beside(ours, {name: theirs}, rounds, device == "cuda")
                ratio = statistics.median(found[name])
                tokens = {"prefill": PROMPT, "decoding 1": 1, "decoding 16": 16}[what]
                rows.append(
                    {
                        "model": name,
                        "made of": "OLMoE, 2 of 16" if routed else "dense",
                        "what": what,
                        "ratio": ratio,
                        "spread": max(found[name]) - min(found[name]),
                        "claimed": contender.claimed,
                        "tokens per second": tokens / (took * ratio),
                        "base tokens per second": tokens / took,
                        "active": after.active / before.active,
                        "bytes": after.bytes / before.bytes,
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
    table = Table(title="time over the model that it was made of", header_style="bold")
    for column in ("model", "what", "time", "spread", "claimed", "tokens/s", "active", "bytes"):
        table.add_column(column, justify="left" if column in ("model", "what") else "right")
    for row in rows:
        table.add_row(
            row["model"],
            row["what"],
            f"{row['ratio']:.3f}",
            f"{row['spread']:.3f}",
            "" if row["claimed"] is None else f"{row['claimed']:.2f}",
            f"{row['tokens per second']:,.0f}",
            f"{row['active']:.2f}",
            f"{row['bytes']:.2f}",
        )
    Console().print(table)
    write(given.json, given.device, rounds=rounds, rows=rows)


if __name__ == "__main__":
    main()
