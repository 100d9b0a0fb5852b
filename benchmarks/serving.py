"""What known-ahead routing brings a server: cache hits, batches by expert, experts from disk.

    python benchmarks/serving.py [--quick] [--threads N] [--disk FOLDER] [--json FILE]

Three parts. Decoding through generated layers whose experts lie on disk, really timed: on demand,
prefetched, and all in memory, with the files in the page cache and not; timed batches give the
costs of a batch. Hit rates of caches on independent draws and on routed text. And servers of routed
text, simulated with these costs: first come beside by expert, at several backlogs and loads.

The text is of several kinds: files under POLYPATH_DATA if it is set, else the standard library's. A
small causal router learns to tell the kinds apart, and is the route; its accuracy is shown. The
requests that are served are of text that it has not seen. Wall seconds; medians over repeats.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timing import commit, in_a_process, machine
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.experts import FeedForwardExperts
from polypath.language import BPETokenizer
from polypath.routing import Routing
from polypath.serving import (
    ArrivalQueue,
    Costs,
    ExpertCache,
    ExpertQueues,
    ExpertStore,
    Queue,
    Request,
    Route,
    Served,
    Unit,
    poisson_trace,
    replay,
    save_experts,
    simulate,
)

ROOM = 16
PIECE = 8  # tokens of a prompt at once
CAPACITIES = (2, 3, 4, 5)
BACKLOGS = (0, 1, 2, 4, 8)
DRAWS = (0.30, 0.20, 0.15, 0.12, 0.10, 0.08, 0.05)  # of the specification's seven experts
PROMPT, GENERATED = 24, 96
LAYERS, DIM, HIDDEN, HEADS, PAST, DTYPE = 8, 1024, 2752, 16, 256, torch.bfloat16
HELD = 3  # experts in memory, where the number does not vary

Texts = Mapping[str, Sequence[str]]


# The text, and the router that tells its kinds apart.


def chunks(text: str, lines: int = 60) -> list[str]:
    rows = text.splitlines(keepends=True)
    return ["".join(rows[start : start + lines]) for start in range(0, len(rows), lines)]


def library() -> list[str]:
    """Modules of the standard library."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def docstrings(modules: Sequence[str]) -> list[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    found = []
    for module in modules:
        nodes = (node for node in ast.walk(ast.parse(module)) if isinstance(node, kinds))
        found.append("\n\n".join(filter(None, map(ast.get_docstring, nodes))))
    return [text for text in found if len(text) > 200]


def data_texts(folder: Path) -> tuple[Texts, Texts]:
    """Four kinds of text, and seven, from a folder of data sets."""
    problems = (folder / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:3000]
    solved = [json.loads(line) for line in problems]
    drama = chunks((folder / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8"))
    numbers = chunks((folder / "ett" / "ETTh1.csv").read_text(encoding="utf-8"))
    graph = (folder / "inductive-kg" / "fb237_v1" / "train.txt").read_text(encoding="utf-8")
    modules = library()
    whole = [f"{one['question']}\n{one['answer']}\n" for one in solved]
    four = {"drama": drama, "maths": whole, "python": modules, "numbers": numbers}
    seven = {
        "drama": drama,
        "questions": [one["question"] + "\n" for one in solved],
        "answers": [one["answer"] + "\n" for one in solved],
        "python": modules,
        "docstrings": docstrings(modules),
        "numbers": numbers,
        "triples": chunks(graph),
    }
    return four, seven


def library_texts() -> tuple[Texts, Texts]:
    """Kinds of files of the standard library: the same four twice, as there are no more."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = library()
    topics = (root / "pydoc_data" / "topics.py").read_text(encoding="utf-8")
    tables = [path.read_text(encoding="utf-8") for path in sorted(root.glob("encodings/cp*.py"))]
    kinds = {
        "python": modules,
        "docstrings": docstrings(modules),
        "topics": chunks(topics),
        "tables": [chunk for table in tables for chunk in chunks(table)],
    }
    return kinds, kinds


class Router(nn.Module):
    """A causal stand-in for a pre-gating router: a GRU over token ids, (B, T) to (B, T, E)."""

    def __init__(self, vocabulary: int, experts: int, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.state = nn.GRU(width, width, batch_first=True)
        self.leave = nn.Linear(width, experts)

    def forward(self, ids: Tensor) -> Tensor:
        return self.leave(self.state(self.embedding(ids))[0])

    def route(self, ids: Tensor) -> Tensor:
        return self(ids[None])[0].argmax(-1)


def trained(
    documents: Mapping[str, Sequence[Tensor]], vocabulary: int, steps: int, length: int = 64
) -> Router:
    """A router that has seen windows of every kind of document, as many of each."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    router = Router(vocabulary, len(documents))
    streams = [torch.cat(list(texts)) for texts in documents.values()]
    optimiser = torch.optim.AdamW(router.parameters(), lr=3e-3)
    rows = 64 // len(streams)
    kinds = torch.arange(len(streams)).repeat_interleave(rows)[:, None].expand(-1, length)
    for _ in range(steps):
        starts = [random.integers(len(ids) - length, size=rows) for ids in streams]
        batch = [ids[s : s + length] for ids, own in zip(streams, starts, strict=True) for s in own]
        loss = F.cross_entropy(router(torch.stack(batch)).flatten(0, 1), kinds.flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return router.requires_grad_(False)


class Text:
    """Unseen documents of several kinds, and the route of a router trained on others."""

    def __init__(self, texts: Texts, steps: int) -> None:
        tokenizer = BPETokenizer.train(["".join(own)[:300_000] for own in texts.values()], 1024)
        seen, unseen = {}, {}
        for kind, own in texts.items():
            ids = [tokenizer.encode(text[:20_000]) for text in own if len(text) > 20]
            cut = len(ids) * 3 // 4
            seen[kind], unseen[kind] = ids[:cut], ids[cut:]
        start = time.perf_counter()
        router = trained(seen, tokenizer.vocab_size, steps)
        self.route: Route = router.route
        self.seconds = time.perf_counter() - start
        self.documents = unseen

    def trace(self, requests: int, load: float = math.inf, seed: int = 0) -> list[Request]:
        return poisson_trace(self.documents, self.route, requests, load, PROMPT, GENERATED, seed)

    def facts(self, requests: int) -> dict[str, Any]:
        """How good the router is, and how steady: on the requests that are served."""
        kinds = list(self.documents)
        right, repeated, tokens, joints = 0, 0, 0, 0
        for request in self.trace(requests):
            experts = [*request.prompt, *request.generated]
            right += sum(expert == kinds.index(request.source) for expert in experts)
            repeated += sum(a == b for a, b in pairwise(experts))
            tokens, joints = tokens + len(experts), joints + len(experts) - 1
        return {
            "kinds": kinds,
            "training_seconds": self.seconds,
            "accuracy": right / tokens,
            "repeats_predecessor": repeated / joints,
            "tokens": tokens,
        }


# Hit rates.


def hit_rates(texts: Mapping[str, Text], seeds: int, requests: int) -> list[dict[str, Any]]:
    """Every policy at every capacity, on accesses token by token and batch by batch."""
    traces = {name: [t.trace(requests, seed=s) for s in range(seeds)] for name, t in texts.items()}
    draws = [np.random.default_rng(s).choice(7, 20_000, p=DRAWS).tolist() for s in range(seeds)]
    streams: dict[str, list[list[int]]] = {"independent draws": draws}
    for name, own in traces.items():
        streams[f"{name}, one request after another"] = [
            [expert for request in trace for expert in request.prompt + request.generated]
            for trace in own
        ]
    ways = [(policy, None) for policy in ("random", "fifo", "lru")]
    ways += [("belady", horizon) for horizon in (ROOM, 8 * ROOM, None)]
    rows = []
    for stream, accesses in streams.items():
        for policy, horizon in ways:
            rates = [
                statistics.median(replay(own, c, policy, horizon).hit_rate for own in accesses)
                for c in CAPACITIES
            ]
            known = {"known": "all" if horizon is None else horizon} if policy == "belady" else {}
            rows.append({"stream": stream, "policy": policy, **known, "rates": rates})
    for name, own in traces.items():
        rows += [row for queue in (ArrivalQueue, ExpertQueues) for row in batched(name, own, queue)]
    return rows


def batched(name: str, traces: list[list[Request]], queue: type) -> Iterator[dict[str, Any]]:
    """Hit rates of a saturated server; Belady knows the queue, as much as there is."""
    free = Costs(batch=1.0, token=0.0, touched=0.0, loaded=0.0)
    said = {ArrivalQueue: "first come", ExpertQueues: "by expert"}[queue]
    for backlog in (1, 8):
        places = ROOM * (1 + backlog)
        for policy in ("random", "fifo", "lru", "belady"):
            served = [
                [
                    simulate(t, queue(), ExpertCache(c, policy), ROOM, free, places, PIECE)
                    for t in traces
                ]
                for c in CAPACITIES
            ]
            yield {
                "stream": f"{name}, batches {said}, backlog {backlog}",
                "policy": policy,
                **({"known": "queued"} if policy == "belady" else {}),
                "rates": [statistics.median(s.hit_rate for s in own) for own in served],
                "loads_per_batch": [statistics.median(s.loaded for s in own) for own in served],
            }


# Servers, simulated with measured costs.


def disciplines(backlog: int) -> dict[str, Callable[[], Queue]]:
    return {
        "first come": ArrivalQueue,
        "prompts first": partial(ArrivalQueue, "prompts"),
        "generated first": partial(ArrivalQueue, "generated"),
        "by expert": ExpertQueues,
        f"by expert, wait ≤ {2 * (backlog + 1)}": partial(ExpertQueues, 2 * (backlog + 1)),
        f"by expert, wait ≤ {4 * (backlog + 1)}": partial(ExpertQueues, 4 * (backlog + 1)),
    }


def told(runs: Sequence[Served]) -> dict[str, Any]:
    """The medians over runs of all that was measured."""

    def middle(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: middle([value[key] for value in values]) for key in values[0]}
        return statistics.median(values)

    return middle([{"tokens_per_second": run.tokens_per_second, **asdict(run)} for run in runs])


def servers(
    name: str, text: Text, costs: Costs, seeds: int, requests: int
) -> Iterator[dict[str, Any]]:
    """Saturated at several backlogs, and offered several loads."""
    traces = [text.trace(requests, seed=seed) for seed in range(seeds)]

    def run(make: Callable[[], Queue], traces: Sequence[list[Request]], active: int) -> dict:
        cache = partial(ExpertCache, min(HELD, len(text.documents) - 1), "belady")
        return told([simulate(t, make(), cache(), ROOM, costs, active, PIECE) for t in traces])

    most = 0.0
    for backlog in BACKLOGS:
        for said, make in disciplines(backlog).items():
            found = run(make, traces, ROOM * (1 + backlog))
            if said == "first come":
                most = max(most, found["tokens_per_second"])
            yield {"text": name, "backlog": backlog, "queue": said, **found}
    for share in (0.8, 1.2):
        offered = [text.trace(requests, share * most, seed) for seed in range(seeds)]
        for said, make in disciplines(3).items():
            found = run(make, offered, 9 * ROOM)
            yield {"text": name, "load": share, "queue": said, **found}


# Decoding with experts on disk, timed.


class Layer(nn.Module):
    """A decoder layer in one step of decoding: attention over a past, and a bank of experts."""

    def __init__(self, bank: nn.Module, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.maps = (torch.randn(4, DIM, DIM) / DIM**0.5).to(DTYPE)
        self.past = torch.randn(2, ROOM, HEADS, PAST, DIM // HEADS).to(DTYPE)
        self.bank = bank

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        h = F.rms_norm(x, (DIM,))
        q, k, v = (
            F.linear(h, weight).view(len(x), HEADS, 1, -1) for weight in self.maps[:3].unbind()
        )
        keys, values = self.past[:, : len(x)]
        attended = F.scaled_dot_product_attention(
            q, torch.cat([keys, k], 2), torch.cat([values, v], 2)
        )
        x = x + F.linear(attended.flatten(1), self.maps[3])
        return x + self.bank(F.rms_norm(x, (DIM,)), routing)


def generated_banks(experts: int) -> Iterator[FeedForwardExperts]:
    for layer in range(LAYERS):
        torch.manual_seed(100 + layer)
        yield FeedForwardExperts(experts, DIM, HIDDEN).to(DTYPE).requires_grad_(False)


def one_expert(experts: Sequence[int], count: int) -> Routing:
    """One expert for each token, the same in all layers, its weight one."""
    chosen = torch.tensor(experts)[:, None]
    return Routing(torch.zeros(len(experts), count), chosen, torch.ones(chosen.shape, dtype=DTYPE))


def passed(layers: Sequence[Layer], x: Tensor, routing: Routing) -> tuple[Tensor, float]:
    """What the layers make of x, and how long it takes them."""
    start = time.perf_counter()
    for layer in layers:
        x = layer(x, routing)
    return x, time.perf_counter() - start


Round = tuple[list[int], list[int]]
"""The experts of the tokens of a batch, and of what is queued behind it, as it would be served."""


def decoding_rounds(trace: Sequence[Request], count: int) -> list[Round]:
    """Batches by expert of generated tokens, with a backlog of one batch."""
    places = 2 * ROOM
    streams = [
        cycle([expert for request in trace[place::places] for expert in request.generated])
        for place in range(places)
    ]
    queue, rounds = ExpertQueues(), []
    free: Sequence[int] = range(places)
    for _ in range(count):
        queue.add([Unit(place, (next(streams[place]),)) for place in free])
        batch = queue.take(ROOM)
        later = [expert for behind in queue.upcoming(ROOM) for expert in behind.experts]
        free = [unit.request for unit in batch.units]
        rounds.append(([unit.experts[0] for unit in batch.units], later))
    return rounds


def drop_pages(folder: Path) -> None:
    """Have the system forget the files, as far as it does."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_pages(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def measured_costs(folder: Path, count: int, page_cache: bool) -> Costs:
    """From batches of random experts, of any number, whose loads and products take turns."""
    random = np.random.default_rng(0)
    counts, seconds = [], []
    (read_pages if page_cache else drop_pages)(folder)
    with ExpertStore(folder, HELD + 1, "lru", prefetch=False, page_cache=page_cache) as store:
        layers = [Layer(bank, seed) for seed, bank in enumerate(store.banks())]
        for _ in range(count + 2):
            tokens = int(random.integers(1, ROOM + 1))
            pool = random.choice(store.num_experts, int(random.integers(1, HELD + 2)), False)
            experts = random.choice(pool, tokens).tolist()
            before = store.misses
            x = torch.randn(tokens, DIM).to(DTYPE)
            _, took = passed(layers, x, one_expert(experts, store.num_experts))
            counts.append((tokens, len(set(experts)), (store.misses - before) // LAYERS))
            seconds.append(took)
    return Costs.fit(counts[2:], seconds[2:])


WAYS = {
    "on demand, lru": ("lru", False),
    "on demand, belady": ("belady", False),
    "prefetched, lru": ("lru", True),
    "prefetched, belady": ("belady", True),
}
WARM_UP = 4


def from_disk(
    folder: Path, rounds: Sequence[Round], truth: Sequence[Tensor], way: str, page_cache: bool
) -> dict[str, Any]:
    """All rounds once; raises AssertionError where a result is not that of the bank in memory."""
    policy, prefetch = WAYS[way]
    (read_pages if page_cache else drop_pages)(folder)
    seconds, counts = [], []
    with ExpertStore(folder, HELD, policy, prefetch, page_cache) as store:
        layers = [Layer(bank, seed) for seed, bank in enumerate(store.banks())]
        for number, ((experts, later), y) in enumerate(zip(rounds, truth, strict=True)):
            if number == WARM_UP:
                waited, hits, misses = store.waited, store.hits, store.misses
            before = store.misses
            start = time.perf_counter()
            store.announce(experts, later)
            announced = time.perf_counter() - start
            found, took = passed(layers, things(number), one_expert(experts, store.num_experts))
            torch.testing.assert_close(found, y, rtol=2e-2, atol=2e-2)
            seconds.append(took + announced)
            counts.append((len(experts), len(set(experts)), (store.misses - before) // LAYERS))
        hits, misses = store.hits - hits, store.misses - misses
        return {
            "seconds": seconds[WARM_UP:],
            "counts": counts[WARM_UP:],
            "waited": (store.waited - waited) / sum(seconds[WARM_UP:]),
            "hit_rate": hits / (hits + misses),
        }


def things(number: int) -> Tensor:
    return torch.randn(ROOM, DIM, generator=torch.Generator().manual_seed(number)).to(DTYPE)


def in_memory(rounds: Sequence[Round], experts: int) -> tuple[list[Tensor], list[float]]:
    layers = [Layer(bank, seed) for seed, bank in enumerate(generated_banks(experts))]
    ran = [passed(layers, things(n), one_expert(own, experts)) for n, (own, _) in enumerate(rounds)]
    return [y for y, _ in ran], [took for _, took in ran]


def timed_disk(
    place: str | None, rounds: list[Round], experts: int, fits: int, repeats: int
) -> list[dict[str, Any]]:
    """Costs, and rounds of decoding each way, with the files in the page cache and not."""
    with tempfile.TemporaryDirectory(dir=place) as name, torch.inference_mode():
        folder = Path(name)
        save_experts(folder, generated_banks(experts))
        costs = {cached: measured_costs(folder, fits, cached) for cached in (False, True)}
        ran: dict[tuple[str, bool | None], list[dict]] = {}
        for _ in range(repeats):
            truth, seconds = in_memory(rounds, experts)
            ran.setdefault(("in memory", None), []).append({"seconds": seconds[WARM_UP:]})
            for cached in (False, True):
                for way in WAYS:
                    found = from_disk(folder, rounds, truth, way, cached)
                    ran.setdefault((way, cached), []).append(found)
        size = sum(path.stat().st_size for path in folder.iterdir())
    rows = [row(way, cached, runs, costs) for (way, cached), runs in ran.items()]
    told = [{"page_cache": cached, **asdict(own)} for cached, own in costs.items()]
    return [*rows, {"costs": told, "expert_bytes": size / experts}]


def row(
    way: str, cached: bool | None, runs: Sequence[dict], costs: Mapping[bool, Costs]
) -> dict[str, Any]:
    """The medians over repeats, of the mean round."""
    took = [statistics.fmean(run["seconds"]) for run in runs]
    told = {
        "way": way,
        "page_cache": cached,
        "milliseconds": 1e3 * statistics.median(took),
        "spread": 1e3 * (max(took) - min(took)),
        "tokens_per_second": ROOM / statistics.median(took),
    }
    if cached is None:
        return told
    model = replace(costs[cached], overlapped=WAYS[way][1])
    predicted = statistics.fmean(model.seconds(*count) for count in runs[0]["counts"])
    more = {name: statistics.median(run[name] for run in runs) for name in ("waited", "hit_rate")}
    loaded = statistics.fmean(loaded for _, _, loaded in runs[0]["counts"])
    return told | more | {"loaded": loaded, "predicted": 1e3 * predicted}


# All of it.

TEXT = ("text", "accuracy", "repeats_predecessor", "training_seconds", "tokens")
DISK = ("way", "page_cache", "milliseconds", "spread", "predicted", "waited", "hit_rate", "loaded")
COSTS = ("page_cache", "batch", "token", "touched", "loaded")
RATES = ("stream", "policy", "known", "rates")
SERVED = ("text", "backlog", "load", "queue", "tokens_per_second", "stay.p50", "stay.p95")
SERVED += ("token.p50", "token.p95", "token.p99", "touched", "loaded", "hit_rate", "longest_wait")


def shown(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    table = Table(title=title, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "))
    for own in rows:
        table.add_row(*[_cell(own, column) for column in columns])
    Console(width=180).print(table)


def _cell(own: Mapping[str, Any], column: str) -> str:
    value: Any = own
    for key in column.split("."):
        value = value.get(key, "") if isinstance(value, Mapping) else ""
    if isinstance(value, list):
        return "  ".join(f"{100 * one:5.1f}" for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, one repeat")
    parser.add_argument("--threads", type=int, default=1, help="threads for products")
    parser.add_argument("--disk", help="a folder on the disk to measure; the temporary one if not")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    repeats, requests, steps = (1, 60, 60) if given.quick else (3, 600, 250)
    data = os.environ.get("POLYPATH_DATA")
    kinds = data_texts(Path(data)) if data else library_texts()
    texts = {f"{len(own)} kinds": Text(own, steps) for own in kinds}
    facts = {name: text.facts(requests) for name, text in texts.items()}
    shown("text", [{"text": name} | own for name, own in facts.items()], TEXT)

    wide = list(texts.values())[-1]
    count = len(wide.documents)
    rounds = decoding_rounds(wide.trace(requests), 12 if given.quick else 36)
    fits = 24 if given.quick else 80
    found = in_a_process(given.threads, timed_disk, given.disk, rounds, count, fits, repeats)
    disk, costs = found[:-1], found[-1]
    shown("a batch of decoding through all layers", disk, DISK)
    shown("costs of a batch, seconds", costs["costs"], COSTS)

    rates = hit_rates(texts, repeats, requests)
    shown(f"hit rates in percent, capacities {CAPACITIES}", rates, RATES)

    cold = {k: v for k, v in costs["costs"][0].items() if k != "page_cache"}
    prefetched = replace(Costs(**cold), overlapped=True)
    served = [
        own
        for name, text in texts.items()
        for own in servers(name, text, prefetched, repeats, requests)
    ]
    shown("simulated servers, prefetching from disk", served, SERVED)
    if given.json:
        about = {"commit": commit(), "machine": machine("cpu"), "repeats": repeats}
        parts = {"text": facts, "disk": disk, **costs, "rates": rates, "served": served}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(about | parts, indent=1))


if __name__ == "__main__":
    main()
