"""convert and merge: a checkpoint goes in, a changed one comes out, and a page of what was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from polypath.cli.parsing import parse
from polypath.cli.progress import progress
from polypath.errors import InputError


@dataclass(frozen=True)
class Text:
    """The text that an operation looks at."""

    text: Path | None = None
    """A text file or a folder of them; the standard library's own source by default."""
    windows: int = 128
    """How many windows of it to read."""
    context: int = 512
    """Tokens in a window."""


@dataclass(frozen=True)
class Convert:
    """Dense feed-forward layers into experts."""

    checkpoint: tyro.conf.Positional[Path]
    """A folder that transformers or polypath saved."""
    method: Literal["factorllm", "read-me", "granular"]
    """factorllm: equal slices of each layer. read-me: slices for domains, one router ahead of all
    layers. granular: copies of each layer in slices, which start as the layer itself."""
    out: Path | None = None
    """The new checkpoint; CHECKPOINT-METHOD by default."""
    dry_run: bool = False
    """Print sizes and costs, and touch no weights."""
    experts: int | None = None
    """factorllm: experts in a layer (4)."""
    k: int | None = None
    """factorllm, granular: experts that serve a token (2)."""
    split: Literal["contiguous", "random", "clustered"] | None = None
    """factorllm: how units are divided (contiguous)."""
    copies: int | None = None
    """granular: copies of each layer (4), of k slices each."""
    domains: tuple[Path, ...] = ()
    """read-me: text files or folders, one a domain."""
    kept: float | None = None
    """read-me: the part of the channels that an expert has (0.5)."""
    layout: Literal["fused", "split"] | None = None
    """read-me: each expert with all of its channels, or common ones apart (fused)."""
    router_width: int | None = None
    """read-me: width of the router (512)."""
    seed: int = 0
    """Of the routers' first rows, and of random splits."""
    tune: int = 0
    """Steps of training in the method's own way; the model has to fit into memory."""
    learning_rate: float = 4e-5
    """Peak learning rate of the tuning."""
    reading: tyro.conf.OmitArgPrefixes[Text] = Text()


OPTIONS = {
    "factorllm": ("experts", "k", "split"),
    "granular": ("copies", "k"),
    "read-me": ("kept", "layout", "router_width"),
}


def convert(arguments: list[str]) -> None:
    """`polypath convert`."""
    line = "Dense feed-forward layers into experts; the checkpoint itself stays as it is."
    given = parse(Convert, arguments, "polypath convert", line)
    _check_options(given)

    from polypath.surgery.checkpoints import (
        Reading,
        convert_checkpoint,
        plan_conversion,
        steps_of,
        tune_checkpoint,
    )
    from polypath.surgery.tuning import Tuning

    made: list[Any] = []

    def method(seen: Mapping[str, Any]) -> Any:
        made.append(_method(given, seen))
        return made[-1]

    own = asdict(given.reading)
    domains = {path.stem: Reading(**own | {"text": path}) for path in given.domains}
    if len(domains) < len(given.domains):
        raise InputError("convert: two domains have one name")
    if given.dry_run:
        show_plan(plan_conversion(given.checkpoint, method, list(domains)), given.checkpoint)
        return
    out = given.out or Path(f"{given.checkpoint.resolve()}-{given.method}")
    with progress(steps_of(given.checkpoint, calibrated=bool(domains))) as told:
        done = convert_checkpoint(given.checkpoint, out, method, domains, told)
    if given.tune:
        texts = domains or {"text": Reading(**own)}
        tuning = Tuning(given.tune, given.learning_rate, warmup=min(20, given.tune // 5))
        with progress(given.tune) as told:
            done = tune_checkpoint(given.checkpoint, out, made[-1], tuning, texts, told)
    show(done, given.checkpoint, out)


def _check_options(given: Convert) -> None:
    """Raise InputError for options of another method, or domains that are missing."""
    for method, names in OPTIONS.items():
        for name in names:
            if getattr(given, name) is not None and name not in OPTIONS[given.method]:
                raise InputError(
                    f"convert: --{name.replace('_', '-')} is an option of {method}; "
                    f"{given.method} has {', '.join(OPTIONS[given.method])}"
                )
    if (given.method == "read-me") != bool(given.domains):
        raise InputError(
            "convert: read-me needs --domains, two text files or more, one a domain"
            if given.method == "read-me"
            else f"convert: {given.method} has no domains; --text is what it can be tuned on"
        )


def _method(given: Convert, seen: Mapping[str, Any]) -> Any:
    """The method as the options say."""
    from polypath.surgery.factorllm import FactorLLM
    from polypath.surgery.granular import Granular
    from polypath.surgery.readme import ReadMe

    options = {
        name: value for name in OPTIONS[given.method] if (value := getattr(given, name)) is not None
    }
    if given.method == "factorllm":
        return FactorLLM(**options, seed=given.seed)
    if given.method == "granular":
        return Granular(**options, seed=given.seed)
    if "router_width" in options:
        options["width"] = options.pop("router_width")
    return ReadMe(seen, **options, seed=given.seed)


@dataclass(frozen=True)
class MergeOptions:
    """Many experts into few."""

    checkpoint: tyro.conf.Positional[Path]
    """A folder that transformers or polypath saved."""
    experts: float
    """How many experts a layer keeps, on average."""
    out: Path | None = None
    """The new checkpoint; CHECKPOINT-merged by default."""
    dry_run: bool = False
    """Print sizes and costs, and touch no weights."""
    exclude: tuple[int, ...] = ()
    """Layers that keep all of their experts."""
    layers: Literal["adaptive", "uniform"] = "adaptive"
    """One budget for all layers, or the same number in each."""
    similarity: Literal["scores", "random", "weights", "rows"] = "scores"
    """Which experts are alike: by the router's scores, or a baseline's way."""
    weighting: Literal["usage", "uniform", "dominant"] = "usage"
    """Averages by usage, plain ones, or the most used expert as it is."""
    align: bool = True
    """Put hidden units into one order first."""
    router: Literal["keep", "prune"] = "keep"
    """keep: routers choose as before (polypath loads it). prune: they lose the rows of experts that
    are gone, and the checkpoint is one of its own architecture with fewer experts."""
    rank: int = 0
    """Write merged experts as matrices of this rank and some whole rows; 0 for whole ones."""
    rows: float = 0.1
    """The part of the rows that is kept beside the low rank."""
    recover: int = 0
    """Steps in which compressed experts are taught by the old model, in memory."""
    reading: tyro.conf.OmitArgPrefixes[Text] = Text()


def merge(arguments: list[str]) -> None:
    """`polypath merge`."""
    line = "Many experts into few, by what routers do; the checkpoint itself stays as it is."
    given = parse(MergeOptions, arguments, "polypath merge", line)
    if given.rank and given.router == "prune":
        raise InputError("merge: --rank keeps the router; leave out --router prune")
    if given.recover and not given.rank:
        raise InputError("merge: --recover teaches compressed experts; --rank says how small")

    from polypath.surgery.checkpoints import (
        Reading,
        compress_checkpoint,
        merge_checkpoint,
        plan_merge,
        steps_of,
    )
    from polypath.surgery.merge import Merge

    config = Merge(
        given.experts,
        given.exclude,
        given.layers,
        given.similarity,
        given.weighting,
        given.align,
    )
    if given.dry_run:
        show_plan(plan_merge(given.checkpoint, config), given.checkpoint)
        return
    reading = Reading(**asdict(given.reading))
    out = given.out or Path(f"{given.checkpoint.resolve()}-merged")
    native = given.router == "prune"
    with progress(steps_of(given.checkpoint, True, native) + given.recover) as told:
        done = merge_checkpoint(given.checkpoint, out, config, reading, native, told)
        if given.rank:
            done = compress_checkpoint(
                out,
                given.checkpoint,
                given.rank,
                given.rows,
                given.recover,
                reading,
                given.exclude,
                told,
            )
    show(done, given.checkpoint, out)


def show_plan(surgery: Any, checkpoint: Path) -> None:
    """What an operation would do: the table of sizes."""
    from polypath.recipes.show import print_table
    from polypath.report.operations import outcome_of

    outcome = outcome_of(surgery, checkpoint.name)
    for table in outcome.tables[: 2 if surgery.moves else 1]:
        print_table(table)
    for note in surgery.notes:
        print(note)
    print("a dry run: nothing was written")


def show(surgery: Any, checkpoint: Path, out: Path) -> None:
    """Print what was done, and write its page beside the new checkpoint."""
    from polypath.recipes.show import print_table
    from polypath.report import write_report
    from polypath.report.operations import PAGE, outcome_of

    outcome = outcome_of(surgery, checkpoint.name)
    write_report(outcome, out / PAGE)
    for table in outcome.tables[:-1]:
        print_table(table)
    print(f"checkpoint: {out.resolve()}")
    print(f"report: {(out / PAGE).resolve()}")
