"""Operations on a checkpoint that is larger than the memory they are given.

    python benchmarks/memory.py [--gigabytes 4] [--limit 2] [--folder FOLDER] [--json FILE]

Generates checkpoints of random weights, dense and routed, in shards; then converts and merges them
from the command line under a limit on the address space of the process (`ulimit -v`), and reports
the largest memory that it had, less what it had before it read anything, over the largest layer.
"""

from __future__ import annotations

import argparse
import resource
import shutil
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
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM

from polypath.language.shards import ShardWriter, places

COMMON: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "dtype": "float32",
}


DOMAINS = ["--domains", "README.md", "CONTRIBUTING.md", "--router-width", "128"]


def generate(folder: Path, routed: bool, size: float) -> int:
    """A checkpoint of about `size` bytes, a shard for each layer; the bytes of a layer."""
    config: Any
    if routed:
        experts = {"intermediate_size": 512, "num_experts": 32, "num_experts_per_tok": 4}
        config, kind = OlmoeConfig(**COMMON, **experts), OlmoeForCausalLM
    else:
        config, kind = LlamaConfig(**COMMON, intermediate_size=5632), LlamaForCausalLM
    config.num_hidden_layers, config.architectures = 1, [kind.__name__]
    with torch.device("meta"):
        one = kind(config)
    layer = sum(p.numel() * p.element_size() for p in one.model.layers[0].parameters())
    config.num_hidden_layers = max(2, round(size / layer))
    with torch.device("meta"):
        model = kind(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    named = on_disk(model.state_dict())
    before = [name for name in named if ".layers." not in name]
    groups = [before]
    groups += [
        [name for name in named if f".layers.{index}." in name]
        for index in range(config.num_hidden_layers)
    ]
    writer = ShardWriter(folder, len(groups))
    for names in groups:
        like = {name: named[name] for name in names}
        drawn = (torch.randn(t.shape, generator=generator) * 0.02 for t in like.values())
        writer.add(like, drawn)
    writer.close()
    return layer


def on_disk(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as files have them: each expert's matrices apart."""
    found = {}
    for name, tensor in state.items():
        if tensor.dim() != 3:
            found[name] = tensor
            continue
        stack, _, last = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
        for expert, own in enumerate(tensor):
            for part, matrix in zip(parts, own.chunk(len(parts)), strict=True):
                found[f"{stack}.{expert}.{part}.weight"] = matrix
    return found


def limited(arguments: list[str], limit: int) -> dict[str, Any]:
    """Run `polypath ARGUMENTS` under a limit on its address space."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    began = time.perf_counter()
    code = "import resource, sys; from polypath.cli import main; import torch, transformers; "
    code += "import polypath.surgery.checkpoints; "
    code += "print('BASE', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); "
    code += "main(sys.argv[1:]); "
    code += "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        preexec_fn=lower,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"polypath {' '.join(arguments)}: {done.stderr[-2000:]}")
    told = dict(line.split() for line in done.stderr.splitlines() if line[:4] in ("BASE", "PEAK"))
    base, peak = int(told["BASE"]) * 1024, int(told["PEAK"]) * 1024
    return {"base": base, "peak": peak, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit", type=float, default=2.0, help="gigabytes of address space")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    work = given.folder or Path(tempfile.mkdtemp())
    text = ["--windows", "16", "--context", "128"]
    rows = []
    for routed in (False, True):
        source = work / ("routed" if routed else "dense")
        layer = generate(source, routed, given.gigabytes * 2**30)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        jobs = {
            "factorllm": ["convert", str(source), "--method", "factorllm"],
            "granular, 2 copies": ["convert", str(source), "--method", "granular", "--copies", "2"],
            "read-me, 2 domains": ["convert", str(source), "--method", "read-me", *text, *DOMAINS],
        }
        if routed:
            jobs = {"merge to a quarter": ["merge", str(source), "--experts", "8", *text]}
        for name, arguments in jobs.items():
            target = work / "out"
            limit = int(given.limit * 2**30)
            found = limited([*arguments, "--out", str(target)], limit)
            written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
            for path in target.glob("*.safetensors"):
                places(path)  # whole files, or an error
            shutil.rmtree(target)
            rows.append(
                found
                | {"job": name, "layer": layer, "size": size, "written": written}
                | {"ratio": (found["peak"] - found["base"]) / layer}
            )
        shutil.rmtree(source)
    table = Table(title=f"under {given.limit:g} GB of address space", header_style="bold")
    columns = ("job", "checkpoint", "written", "layer", "before", "peak", "over layer", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column == "job" else "right")
    for row in rows:
        megabytes = [
            f"{row[k] / 1e6:,.0f} MB" for k in ("size", "written", "layer", "base", "peak")
        ]
        table.add_row(row["job"], *megabytes, f"{row['ratio']:.2f}", f"{row['seconds']:.0f}")
    Console().print(table)
    write(given.json, limit=given.limit, rows=rows)


if __name__ == "__main__":
    main()
