"""What known-ahead routing brings a server: cache hits, batches by expert, experts from disk.

    python benchmarks/serving.py [--quick] [--only PART] [--threads N] [--disk FOLDER] [--json FILE]

Three parts. Decoding through generated layers whose experts lie on disk, really timed: on demand,
prefetched, and all in memory, with the files in the page cache and not; timed batches give the
costs of a batch. Hit rates of caches on independent draws and on routed text. And servers of routed
text, simulated with these costs: first come beside by expert, at several backlogs and loads.

The text is of several kinds: files under POLYPATH_DATA if it is set, else the standard library's. A
small pre-gating router learns to tell the kinds apart, and is the route; its accuracy is shown. The
requests that are served are of text that it has not seen. Medians over repeats. Times are wall
seconds less those in which the computing thread waited for a core that others used (Linux counts
them); where such waiting was much, prefetching, which needs a second core, cannot show what it can.
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
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from statistics import median
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
from polypath.routing import PregatingScorer, Routing
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

ROOM = 16  # tokens of a batch
PIECE = 8  # tokens of a prompt at once
PROMPT, GENERATED = 24, 96
CAPACITIES = (2, 3, 4, 5)
HELD = 3  # experts in memory, where their number does not vary
BACKLOGS = (0, 1, 2, 4, 8)
GUESS = 4
DRAWS = (0.30, 0.20, 0.15, 0.12, 0.10, 0.08, 0.05)  # the seven experts of the specification
LAYERS, DIM, HIDDEN, HEADS, PAST, DTYPE = 8, 1024, 2752, 16, 256, torch.bfloat16
WARM_UP = 4

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


def trained(
    documents: Mapping[str, Sequence[Tensor]], vocabulary: int, steps: int, length: int = 64
) -> PregatingScorer:
    """A router of token ids that has seen windows of every kind of document, as many of each."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    router = PregatingScorer(vocabulary, len(documents), width=96)
    streams = [torch.cat(list(texts)) for texts in documents.values()]
    optimiser = torch.optim.AdamW(router.parameters(), lr=3e-3)
    rows = 64 // len(streams)
    kinds = torch.arange(len(streams)).repeat_interleave(rows)[:, None].expand(-1, length)
    for _ in range(steps):
        starts = [random.integers(len(ids) - length, size=rows) for ids in streams]
        batch = [ids[s : s + length] for ids, own in zip(streams, starts, strict=True) for s in own]
        loss = F.cross_entropy(router.decide(torch.stack(batch)).flatten(0, 1), kinds.flatten())
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
        self.route: Route = lambda ids: router.decide(ids[None])[0].argmax(-1)
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


# Batches of decoding.


@dataclass(frozen=True)
class Round:
    """A batch of generated tokens, and what comes after it.

    experts: of each token. known: of the batches that are queued. guessed: of four batches, if each
    token is followed by its like.
    """

    experts: list[int]
    known: list[int]
    guessed: list[int]

    @property
    def unique(self) -> list[int]:
        return sorted(set(self.experts))


def decoding(trace: Sequence[Request], queue: Queue, backlog: int, count: int) -> list[Round]:
    """Of a server with so many batches waiting all the time; prompts are left out."""
    places = ROOM * (1 + backlog)
    tokens = [expert for request in trace for expert in request.generated]
    starts = [place * len(tokens) // places for place in range(places)]
    streams = [cycle(tokens[start:] + tokens[:start]) for start in starts]
    rounds: list[Round] = []
    free: Sequence[int] = range(places)
    for _ in range(count):
        queue.add([Unit(place, (next(streams[place]),)) for place in free])
        batch = queue.take(ROOM)
        free = [unit.request for unit in batch.units]
        known, guessed = queue.upcoming(ROOM), islice(queue.upcoming(ROOM, batch), GUESS)
        rounds.append(
            Round(
                [unit.experts[0] for unit in batch.units],
                [expert for later in known for expert in later.experts],
                [expert for later in guessed for expert in later.experts],
            )
        )
    return rounds


# Hit rates.

Rate = Callable[[int], ExpertCache]
"""From a capacity to a cache that has seen it all."""


def token_rates(accesses: list[int]) -> Iterator[tuple[dict[str, Any], Rate]]:
    """Every policy on a trace of single accesses."""
    for policy in ("random", "fifo", "lru"):
        yield {"policy": policy}, partial(replay, accesses, policy=policy)
    for horizon in (ROOM, 8 * ROOM, None):
        told = {"policy": "belady", "known": "all" if horizon is None else f"{horizon} tokens"}
        yield told, partial(replay, accesses, policy="belady", horizon=horizon)


def batch_rates(rounds: list[Round]) -> Iterator[tuple[dict[str, Any], Rate]]:
    """Every policy on the experts of batches."""

    def served(capacity: int, policy: str, later: str | None) -> ExpertCache:
        cache: ExpertCache[int] = ExpertCache(capacity, policy)
        if later == "all":
            cache.foresee([expert for own in rounds for expert in own.unique])
        for own in rounds:
            if later in ("known", "guessed"):
                cache.forget()
                cache.foresee(getattr(own, later))
            cache.serve(own.unique)
        return cache

    for policy in ("random", "fifo", "lru"):
        yield {"policy": policy}, partial(served, policy=policy, later=None)
    for later, said in (("known", "queued"), ("guessed", "guess"), ("all", "all")):
        yield {"policy": "belady", "known": said}, partial(served, policy="belady", later=later)


def hit_rates(texts: Mapping[str, Text], seeds: int, requests: int) -> list[dict[str, Any]]:
    """Medians over seeds, at every capacity: accesses token by token, and batch by batch."""
    count = 5 * requests
    draws = [np.random.default_rng(s).choice(7, 20_000, p=DRAWS).tolist() for s in range(seeds)]
    streams = {"independent draws": [token_rates(own) for own in draws]}
    for name, text in texts.items():
        traces = [text.trace(requests, seed=seed) for seed in range(seeds)]
        streams[f"{name}, one request after another"] = [
            token_rates([e for request in trace for e in request.prompt + request.generated])
            for trace in traces
        ]
        for said, queue in (("first come", ArrivalQueue), ("by expert", ExpertQueues)):
            for backlog in (1, 8):
                streams[f"{name}, batches {said}, backlog {backlog}"] = [
                    batch_rates(decoding(trace, queue(), backlog, count)) for trace in traces
                ]
    rows = []
    for stream, of_seeds in streams.items():
        for ways in zip(*of_seeds, strict=True):
            found = [[make(capacity).hit_rate for _, make in ways] for capacity in CAPACITIES]
            rows.append({"stream": stream, **ways[0][0], "rates": list(map(median, found))})
    return rows


# Servers, simulated with measured costs.


def disciplines(backlog: int) -> dict[str, Callable[[], Queue]]:
    bound = 2 * (backlog + 1)
    return {
        "first come": ArrivalQueue,
        "prompts first": partial(ArrivalQueue, "prompts"),
        "generated first": partial(ArrivalQueue, "generated"),
        "by expert": ExpertQueues,
        f"by expert, wait ≤ {bound}": partial(ExpertQueues, bound),
    }


def told(runs: Sequence[Served]) -> dict[str, Any]:
    """The medians over runs of all that was measured."""

    def middle(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: middle([value[key] for value in values]) for key in values[0]}
        return median(values)

    return middle([{"tokens_per_second": run.tokens_per_second, **asdict(run)} for run in runs])


def servers(
    name: str, text: Text, costs: Costs, seeds: int, requests: int
) -> Iterator[dict[str, Any]]:
    """Saturated at several backlogs, and offered several loads."""
    held = min(HELD, len(text.documents) - 1)

    def run(make: Callable[[], Queue], traces: Sequence[list[Request]], active: int) -> dict:
        runs = []
        for trace in traces:
            cache: ExpertCache[int] = ExpertCache(held, "belady")
            runs.append(simulate(trace, make(), cache, ROOM, costs, active, PIECE, GUESS))
        return told(runs)

    traces = [text.trace(requests, seed=seed) for seed in range(seeds)]
    most = 0.0
    for backlog in BACKLOGS:
        active = ROOM * (1 + backlog)
        for said, make in disciplines(backlog).items():
            found = run(make, [trace[: 100 + 2 * active] for trace in traces], active)
            most = max(most, found["tokens_per_second"]) if said == "first come" else most
            yield {"text": name, "backlog": backlog, "queue": said, **found}
    for share in (0.8, 1.1):
        offered = [text.trace(requests, share * most, seed) for seed in range(seeds)]
        for said, make in disciplines(3).items():
            yield {"text": name, "load": share, "queue": said, **run(make, offered, 9 * ROOM)}


# Decoding with experts on disk, timed.


@cache
def attention(seed: int) -> tuple[Tensor, Tensor]:
    """The maps of a layer, and the keys and values of the past; all decoders share them."""
    torch.manual_seed(seed)
    maps = (torch.randn(4, DIM, DIM) / DIM**0.5).to(DTYPE)
    return maps, torch.randn(2, ROOM, HEADS, PAST, DIM // HEADS).to(DTYPE)


class Layer(nn.Module):
    """A decoder layer in one step of decoding: attention over a past, and a bank of experts."""

    def __init__(self, bank: nn.Module, seed: int) -> None:
        super().__init__()
        self.maps, self.past = attention(seed)
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


@cache
def generated_banks(experts: int) -> list[FeedForwardExperts]:
    """The experts of each layer, made once."""
    torch.manual_seed(100)
    with torch.device("meta"):
        banks = [FeedForwardExperts(experts, DIM, HIDDEN).to(DTYPE) for _ in range(LAYERS)]
    for bank in banks:
        bank.to_empty(device="cpu").requires_grad_(False).reset_parameters()
    return banks


def one_expert(experts: Sequence[int], count: int) -> Routing:
    """One expert for each token, the same in all layers, its weight one."""
    chosen = torch.tensor(experts)[:, None]
    return Routing(torch.zeros(len(experts), count), chosen, torch.ones(chosen.shape, dtype=DTYPE))


def hindered() -> float:
    """Seconds that this thread was ready and had no core; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def things(number: int, tokens: int) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(number)).to(DTYPE)


class Decoder:
    """The layers with their experts on disk or, without a store, in memory; it keeps times."""

    def __init__(self, count: int, store: ExpertStore | None = None) -> None:
        self.count, self.store = count, store
        banks = store.banks() if store else generated_banks(count)
        self.layers = [Layer(bank, seed) for seed, bank in enumerate(banks)]
        self.seconds: list[float] = []
        self.hindered: list[float] = []
        self.waited: list[float] = []
        self.counts: list[tuple[int, int, int]] = []

    def run(self, number: int, own: Round) -> Tensor:
        x, routing = things(number, len(own.experts)), one_expert(own.experts, self.count)
        misses, waited = self._told()
        before = hindered()
        start = time.perf_counter()
        if self.store:
            self.store.announce(own.experts, own.guessed)
        for layer in self.layers:
            x = layer(x, routing)
        took, idle = time.perf_counter() - start, hindered() - before
        self.seconds.append(took - idle)
        self.hindered.append(idle)
        more, longer = self._told()
        self.counts.append((len(own.experts), len(own.unique), (more - misses) // LAYERS))
        self.waited.append(longer - waited)
        return x

    def _told(self) -> tuple[int, float]:
        return (self.store.misses, self.store.waited) if self.store else (0, 0.0)


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


def measured_costs(folder: Path, experts: int, count: int, repeats: int, cached: bool) -> Costs:
    """From batches of random experts, of any number, whose loads and products take turns."""
    random = np.random.default_rng(0)
    rounds = []
    for _ in range(count + WARM_UP):
        pool = random.choice(experts, int(random.integers(1, HELD + 2)), replace=False)
        own = random.choice(pool, int(random.integers(1, ROOM + 1)))
        rounds.append(Round(own.tolist(), [], []))
    took = []
    for _ in range(repeats):
        with ExpertStore(folder, HELD + 1, "lru", prefetch=False, page_cache=cached) as store:
            decoder = Decoder(experts, store)
            for number, own in enumerate(rounds):
                decoder.run(number, own)
        took.append(decoder.seconds[WARM_UP:])
    return Costs.fit(decoder.counts[WARM_UP:], [median(own) for own in zip(*took, strict=True)])


IN_MEMORY = "in memory"
WAYS = {  # experts of each layer in memory, prefetched, and whether files may stay in memory
    f"{way} {files}": (capacity, prefetch, cached)
    for files, cached in (("from disk", False), ("from the page cache", True))
    for way, capacity, prefetch in (
        (f"{HELD} held, on demand", HELD, False),
        (f"{HELD + 1} held, on demand", HELD + 1, False),
        (f"{HELD} held and 1 spare, prefetched", HELD, True),
    )
}


def timed_rounds(folders: Mapping[bool, Path], rounds: Sequence[Round], experts: int) -> dict:
    """Every way side by side, round by round in a new order; its decoder, that has the times.

    Raises AssertionError where a result is not that of the experts in memory.
    """
    with ExitStack() as stores:
        decoders = {IN_MEMORY: Decoder(experts)}
        for way, (capacity, prefetch, cached) in WAYS.items():
            store = ExpertStore(folders[cached], capacity, "belady", prefetch, page_cache=cached)
            decoders[way] = Decoder(experts, stores.enter_context(store))
        for number, own in enumerate(rounds):
            order = np.random.default_rng(number).permutation(list(decoders)).tolist()
            found = {way: decoders[way].run(number, own) for way in order}
            for way in WAYS:
                torch.testing.assert_close(found[way], found[IN_MEMORY], rtol=2e-2, atol=2e-2)
    return decoders


def timed_disk(
    place: str | None, batches: Mapping[str, list[Round]], experts: int, fits: int, repeats: int
) -> list[dict[str, Any]]:
    """Rounds of decoding each way, medians over repeats; the last row has the costs of a batch.

    Two copies of the files: of one the system forgets what is read, the other it keeps in memory.
    """
    rows = []
    with ExitStack() as after:
        after.enter_context(torch.inference_mode())
        folders = {}
        for cached in (False, True):
            name = after.enter_context(tempfile.TemporaryDirectory(dir=place))
            folders[cached] = Path(name)
            save_experts(folders[cached], generated_banks(experts))
            (read_pages if cached else drop_pages)(folders[cached])
        costs = {
            cached: measured_costs(folder, experts, fits, repeats, cached)
            for cached, folder in folders.items()
        }
        for said, rounds in batches.items():
            runs = [timed_rounds(folders, rounds, experts) for _ in range(repeats)]
            rows += [row(said, way, [run[way] for run in runs], costs) for way in runs[0]]
            plain = {own["way"]: own["milliseconds"] for own in rows if own["batches"] == said}
            for own in rows[-len(plain) :]:
                own["over_memory"] = own["milliseconds"] / plain[IN_MEMORY]
        size = sum(path.stat().st_size for path in folders[True].iterdir()) / experts
    fitted = [{"page_cache": cached, **asdict(own)} for cached, own in costs.items()]
    facts = {"costs": fitted, "expert_bytes": size, "load_average": os.getloadavg()}
    return [*rows, facts]


def row(
    said: str, way: str, runs: Sequence[Decoder], costs: Mapping[bool, Costs]
) -> dict[str, Any]:
    """The mean round: of medians over repeats."""

    def mean(values: Sequence[Sequence[float]]) -> float:
        return statistics.fmean(median(own) for own in zip(*values, strict=True))

    counts = runs[0].counts[WARM_UP:]
    _, touched, loaded = (statistics.fmean(own) for own in zip(*counts, strict=True))
    took = 1e3 * mean([run.seconds[WARM_UP:] for run in runs])
    each = [1e3 * statistics.fmean(run.seconds[WARM_UP:]) for run in runs]
    told: dict[str, Any] = {"batches": said, "way": way, "milliseconds": took}
    told["hindered"] = 1e3 * mean([run.hindered[WARM_UP:] for run in runs])
    told |= {"repeats": each, "tokens_per_second": 1e3 * ROOM / took, "touched": touched}
    if way == IN_MEMORY:
        return told
    _, prefetch, cached = WAYS[way]
    model = replace(costs[cached], overlapped=prefetch)
    predicted = 1e3 * statistics.fmean(model.seconds(*count) for count in counts)
    waited = 1e3 * mean([run.waited[WARM_UP:] for run in runs])
    return told | {"loaded": loaded, "waited": waited, "predicted": predicted}


# All of it.

TEXT = ("text", "accuracy", "repeats_predecessor", "training_seconds", "tokens")
DISK = (
    "batches",
    "way",
    "milliseconds",
    "hindered",
    "over_memory",
    "waited",
    "predicted",
    "touched",
    "loaded",
)
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
    parser.add_argument("--only", choices=["disk", "rates", "servers"], help="servers needs costs")
    parser.add_argument("--threads", type=int, default=1, help="threads for products")
    parser.add_argument("--disk", help="a folder on the disk to measure; the temporary one if not")
    parser.add_argument("--json", type=Path, help="write the figures to this file, beside others'")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    repeats, requests, steps = (1, 60, 60) if given.quick else (3, 400, 250)
    wanted = [given.only] if given.only else ["disk", "rates", "servers"]
    kept = given.json is not None and given.json.exists()
    known: dict[str, Any] = json.loads(given.json.read_text()) if kept else {}

    data = os.environ.get("POLYPATH_DATA")
    kinds = data_texts(Path(data)) if data else library_texts()
    texts = {f"{len(own)} kinds": Text(own, steps) for own in kinds}
    known |= {"commit": commit(), "machine": machine("cpu"), "repeats": repeats}
    known["text"] = [{"text": name, **text.facts(requests)} for name, text in texts.items()]
    shown("text", known["text"], TEXT)
    if "disk" in wanted:
        wide = list(texts.values())[-1]
        length, fits = (8, 20) if given.quick else (12, 28)
        batches = {
            said: decoding(wide.trace(requests), queue, 1, length + WARM_UP)
            for said, queue in (("first come", ArrivalQueue()), ("by expert", ExpertQueues()))
        }
        more = given.disk, batches, len(wide.documents), fits, repeats
        *known["disk"], costs = in_a_process(given.threads, timed_disk, *more)
        known |= costs
        shown("a batch of decoding through all layers, in milliseconds", known["disk"], DISK)
        shown("costs of a batch, in seconds", known["costs"], COSTS)
    if "rates" in wanted:
        known["rates"] = hit_rates(texts, repeats, requests // 2)
        shown(f"hit rates in percent, at capacities {CAPACITIES}", known["rates"], RATES)
    if "servers" in wanted:
        own = {name: value for name, value in known["costs"][0].items() if name != "page_cache"}
        costs = replace(Costs(**own), overlapped=True)
        known["served"] = []
        for name, text in texts.items():
            known["served"] += servers(name, text, costs, repeats, requests)
        shown("simulated servers that prefetch from disk, in seconds", known["served"], SERVED)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
