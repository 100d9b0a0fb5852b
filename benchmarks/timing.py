"""Times beside a base's, taken just before and after it, in one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

# What is timed, and what clears up behind it.
Call = tuple[Callable[[], Tensor], Callable[[], None]]


def beside(
    base: Call, calls: Mapping[str, Call], rounds: int, gpu: bool
) -> tuple[float, dict[str, list[float]]]:
    """The base's median seconds, and each call's multiple of the base in every round.

    In CPU seconds of the process, in wall seconds on a GPU.
    """
    named = {"": base, **calls}
    times = {name: repeats(*call, gpu) for name, call in named.items()}

    def timed(name: str) -> float:
        return seconds(*named[name], times[name], gpu)

    bases = [timed("")]
    multiples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        # In a new order each time: what memory one leaves behind is the next one's to clear up.
        for name in random.Random(number).sample(list(calls), len(calls)):
            took = timed(name)
            bases.append(timed(""))
            multiples[name].append(2 * took / sum(bases[-2:]))
    return statistics.median(bases), multiples


def seconds(call: Callable[[], Tensor], after: Callable[[], None], times: int, gpu: bool) -> float:
    """The mean of `times` calls."""
    clock = time.perf_counter if gpu else time.process_time
    total = 0.0
    for _ in range(times):
        start = clock()
        call()
        if gpu:
            torch.cuda.synchronize()
        total += clock() - start
        after()
    return total / times


def repeats(call: Callable[[], Tensor], after: Callable[[], None], gpu: bool) -> int:
    """How many calls make a time that the clock can tell."""
    once = min(seconds(call, after, 1, gpu) for _ in range(2))
    return max(1, min(100, int(0.02 / max(once, 1e-6))))


def machine(device: str) -> dict[str, str | int]:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else name
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def commit() -> str:
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(asked, check=False, capture_output=True, text=True).stdout.strip()


def write(path: Path | None, device: str = "cpu", **facts: Any) -> None:
    """Keep figures, where a file is wanted, with what they depend on."""
    if path is not None:
        known = {"commit": commit(), "machine": machine(device)}
        path.write_text(json.dumps(known | facts, indent=1))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title, header_style="bold")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def in_a_process(threads: int, work: Callable[..., list[dict]], *arguments: Any) -> list[dict]:
    """Do it in a process of its own, which memory that others left behind does not slow down.

    It keeps the memory that it has freed, as training does after a few steps; what glibc gives back
    to the system and asks for again costs a tenth of a pass here, and at random.
    """
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(work, *arguments).result()
