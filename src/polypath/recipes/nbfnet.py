"""Links as learnt sums over paths: NBFNet on family trees, on Python's source and on public graphs.

Source: Neural Bellman-Ford Networks (Zhu et al. 2021), arXiv 2106.06935.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from polypath.errors import InputError
from polypath.graphs.datasets import data_folder
from polypath.graphs.nbfnet.config import Aggregation
from polypath.graphs.python_knowledge import python_knowledge
from polypath.graphs.triple_files import write_triples
from polypath.recipes.graph_sources import check_names
from polypath.recipes.kinship import Kinship, on_kinship
from polypath.recipes.nbfnet_claims import (
    CORA,
    DEEP,
    FREEBASE,
    KINSHIP,
    LEARNT,
    PUBLISHED,
    PYTHON,
    SHALLOW,
    USUAL,
    WORDNET,
    ByArm,
    claims_on,
    of,
)
from polypath.recipes.trials import Facts, Work, conclude, trials
from polypath.recipes.triple_arms import (
    CitationArm,
    TripleArm,
    on_citations,
    on_triples,
    read_split,
)
from polypath.report import Outcome, Table, estimate
from polypath.report.figures import Curves, Paths, Walk
from polypath.report.statistics import series
from polypath.training import distribution
from polypath.training.run import Run

DOMAIN = "graphs"
GRAPHS = (KINSHIP, PYTHON, FREEBASE, WORDNET, CORA)


@dataclass(frozen=True)
class Config:
    """Which graphs' links are predicted, and for how long is trained."""

    seeds: int = 3
    """Models of each kind; of family trees and Python's source also splits."""
    graphs: Sequence[str] = ()
    """Which of kinship (family trees), python (the standard library's source), fb237_v1, WN18RR_v1
    (GraIL's splits) and cora; by default the first two, and the others where data_dir has them."""
    data: Path | None = None
    """A file of triples, or a folder of GraIL's or OpenKE's files, instead of these."""
    data_dir: Path | None = None
    """A folder of public data sets; the one that POLYPATH_DATA names by default."""
    epochs: int = 3
    """Times that models of a knowledge graph see every fact; twice as often in WordNet, whose graph
    is thin and quick."""
    steps: int = 60
    """At most so many steps of an epoch, on Python's source or on data."""
    batch: int = 32
    """Facts of a step."""
    citation_epochs: int = 4
    """Times that models of Cora see every link."""
    kinship_epochs: int = 30
    """Times that models of a family see every fact."""
    workers: int = 0
    """Models trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        counts = ("seeds", "epochs", "steps", "batch", "citation_epochs", "kinship_epochs")
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        check_names(self.graphs, GRAPHS)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": 2,
        "graphs": (KINSHIP, PYTHON),
        "epochs": 1,
        "steps": 10,
        "kinship_epochs": 12,
    }
}


def run(config: Config, run: Run) -> Outcome:
    """Train on every graph under every seed, test on what was not seen; judge the claims."""
    sources = prepare(config, run.folder)
    facts: dict[str, dict[str, list[Facts]]] = {}
    for name, source in sources.items():
        own = arms(config, name, source, run.folder / "models" / name)
        facts[name] = trials(
            own, config.seeds, reports(config, name), run.folder / name, config.workers
        )
    tables = [table(name, own) for name, own in facts.items()]
    claims = [claim for name, own in facts.items() for claim in claims_on(name, own)]
    flat = {f"{name}, {arm}": one for name, own in facts.items() for arm, one in own.items()}
    return conclude(run, flat, tables, claims, [*figures(facts), *walks(facts)])


def prepare(config: Config, kept: Path) -> dict[str, Path]:
    """Where each graph is; Python's source is read once for all. Bad data is told at once."""
    if config.data is not None:
        if distribution.is_main():
            read_split(config.data, 0)
        return {config.data.name: config.data}
    folder = data_folder(config.data_dir)
    places = {KINSHIP: kept, PYTHON: kept / "python.tsv"}
    if folder is not None:
        public = {name: folder / "inductive-kg" / name for name in (FREEBASE, WORDNET)}
        places |= {name: path for name, path in public.items() if path.is_dir()}
        places |= {CORA: folder} if (folder / CORA).is_dir() else {}
    for name in config.graphs:
        if name not in places:
            raise InputError(
                f"{name}: no such data in {folder or 'a folder'}; --data-dir or POLYPATH_DATA "
                f"names a folder that has {CORA} or inductive-kg/{FREEBASE} and the like"
            )
    chosen = {name: places[name] for name in config.graphs or places}
    if PYTHON in chosen and distribution.is_main() and not chosen[PYTHON].exists():
        write_triples(chosen[PYTHON], python_knowledge())
    distribution.wait()
    return chosen


def arms(config: Config, name: str, source: Path, models: Path) -> dict[str, Work]:
    """What is trained on a graph; models: where what has learnt a knowledge graph is kept."""
    if name == KINSHIP:
        made = {
            DEEP: Kinship("NBFNet", config.kinship_epochs, 3),
            SHALLOW: Kinship("NBFNet", config.kinship_epochs, 1),
            "TransE": Kinship("TransE", config.kinship_epochs),
            "DistMult": Kinship("DistMult", config.kinship_epochs),
        }
        return {arm: partial(on_kinship, task) for arm, task in made.items()}
    if name == CORA:
        return {
            kind: partial(on_citations, CitationArm(source, kind, config.citation_epochs))
            for kind in ("NBFNet", "Katz")
        }
    public = name in PUBLISHED
    epochs = config.epochs * (2 if name == WORDNET else 1)
    steps = None if public else config.steps
    kinds: dict[str, Aggregation | None] = {LEARNT: "pna", USUAL: None}
    kinds |= {} if public else {"sum": "sum", "mean": "mean"}
    return {
        arm: partial(
            on_triples,
            TripleArm(source, kind, epochs, config.batch, steps, name == PYTHON, models),
        )
        for arm, kind in kinds.items()
    }


def reports(config: Config, name: str) -> int:
    """How often an arm reports."""
    return {
        KINSHIP: config.kinship_epochs,
        CORA: config.citation_epochs,
        WORDNET: 2 * config.epochs,
    }.get(name, config.epochs)


def _cells(values: Sequence[float]) -> list[Any]:
    mean, low, high = estimate(values)
    return [mean, "" if low is None else f"{low:.3f} … {high:.3f}"]


def table(name: str, facts: ByArm) -> Table:
    """Measures of every arm on a graph."""
    if name == CORA:
        rows = [
            [arm, *_cells(of(own, "auroc")), *_cells(of(own, "ap"))] for arm, own in facts.items()
        ]
        columns = ["", "AUROC", "95 % interval", "AP", "95 % interval"]
        return Table("Links of Cora, without features", columns, rows, note=SPLIT)
    if name == KINSHIP:
        rows = [
            [arm, *_cells(of(own, "test", "mrr")), fmean(of(own, "valid", "mrr"))]
            for arm, own in facts.items()
        ]
        columns = ["", "MRR on another tree", "95 % interval", "on its own"]
        return Table("Grandparents in family trees", columns, rows, note=FILTERED)
    rows = []
    for arm, own in facts.items():
        means = [fmean(of(own, "test", key)) for key in ("hits@1", "hits@10", "hits@10 of 50")]
        rows.append([arm, *_cells(of(own, "test", "mrr")), *means])
    columns = ["", "MRR", "95 % interval", "Hits@1", "Hits@10", "Hits@10 of 50"]
    told = ", ".join(f"{n:,} {what}" for what, n in next(iter(facts.values()))[0]["sizes"].items())
    return Table(f"Tails and heads in {name}", columns, rows, note=f"{told}. {FILTERED}")


FILTERED = (
    "Heads and tails of test facts ranked among all entities that are not known to fit, ties "
    "against; of 50: expected against so many of these. Means over seeds."
)
SPLIT = (
    "85 : 5 : 10 of the links and as many pairs that are none; one split for all seeds, as the "
    "authors have it."
)


def walks(facts: Mapping[str, ByArm]) -> list[Paths]:
    """What explains a prediction of the first seed, on every knowledge graph."""
    found = []
    for name, own in facts.items():
        example = own[LEARNT][0].get("walks", {}) if LEARNT in own else {}
        drawn = [
            Walk(
                [walk["edges"][0][0], *(target for _, _, target in walk["edges"])],
                [relation for _, relation, _ in walk["edges"]],
                walk["importance"],
            )
            for walk in example.get("walks", [])
        ]
        if drawn:
            note = f"{example['fact']}: rank {example['rank']:g}. {IMPORTANCE}"
            found.append(Paths(f"Why a fact of {name} is predicted", drawn, note))
    return found


IMPORTANCE = (
    "Of the first seed, the test fact of the best rank among some; the walks that its score "
    "depends on most, each with the mean gradient of the score by the weights of its edges."
)


def figures(facts: Mapping[str, ByArm]) -> list[Curves]:
    """Validation by epoch, of what was trained."""
    found = []
    for name, own in facts.items():
        lines = [
            series(arm, list(range(1, 1 + len(one[0]["valids"]))), [f["valids"] for f in one])
            for arm, one in own.items()
            if "valids" in one[0]
        ]
        if lines and len(lines[0].x) > 1:
            measure = "AUROC" if name == CORA else "MRR"
            found.append(
                Curves(
                    f"{name} while NBFNet learns",
                    "epoch",
                    f"{measure} on validation",
                    lines,
                    "Bands: 95 % intervals of the mean over seeds.",
                )
            )
    return found
