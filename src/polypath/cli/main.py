"""The command line: what each command is called, and what it does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from polypath.cli.parsing import parse, value
from polypath.errors import InputError, unknown

USAGE = """\
polypath: models that choose their path

  polypath run                    the recipes, one line each
  polypath run NAME               train and compare; ends with a report   (--help for its options)
  polypath run --resume RUN       carry on with a run that was stopped
  polypath compare NAME NAME …    several systems on the same text, or links, on one page
  polypath inspect CHECKPOINT     where a text's tokens go in any routed model, on one page
  polypath convert CHECKPOINT     dense layers into experts   (--method factorllm|read-me|granular)
  polypath merge CHECKPOINT       many experts into few, by what its routers do
  polypath align CHECKPOINT       train its routers towards those of questions it answers
  polypath unlearn CHECKPOINT     make one expert forget a text
  polypath links predict MODEL    how likely links are   (--pairs FILE, or --top 20 --for NODE)
  polypath report RUN             write the page of a run again
  polypath table [FOLDER]         every result under FOLDER (default: results) as one table

  --debug shows the traceback of an error.
"""


@dataclass(frozen=True)
class RunOptions:
    """Where a run goes and how it starts."""

    out: Path | None = None
    """Folder of the run; a new one under runs/ by default."""
    resume: Path | None = None
    """A run folder to carry on with, under the configuration that it has."""
    preset: str | None = None
    """Named values for the options, see the recipe; what you set yourself wins."""
    quick: bool = False
    """The same as --preset quick: small enough to see it work."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 1 and one clear line when the input is wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _command(arguments)
    except InputError as error:
        if debug:
            raise
        _fail(str(error), 1)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("stopped", 130)


def _command(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if arguments[0] == "--version":
        from polypath import __version__

        print(__version__)
        return
    commands: dict[str, Callable[[list[str]], None]] = {
        "run": _run,
        "compare": _compare,
        "inspect": _inspect,
        "convert": _operation("convert", "operations"),
        "merge": _operation("merge", "operations"),
        "align": _operation("align", "teaching"),
        "unlearn": _operation("unlearn", "teaching"),
        "links": _operation("links", "links"),
        "report": _report,
        "table": _table,
    }
    if arguments[0] not in commands:
        raise unknown("command", arguments[0], commands)
    commands[arguments[0]](arguments[1:])


def _operation(name: str, room: str) -> Callable[[list[str]], None]:
    """A command that lives in a room of its own, which is imported when it is called."""

    def command(arguments: list[str]) -> None:
        from importlib import import_module

        getattr(import_module(f"polypath.cli.{room}"), name)(arguments)

    return command


def _run(arguments: list[str]) -> None:
    from polypath.recipes.catalogue import find

    if not arguments or arguments[0] in ("-h", "--help"):
        _list_recipes()
        return
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        name, rest = _recipe_of(arguments), arguments
    entry = find(name)

    from polypath.recipes.launch import launch, preset

    recipe = entry.load()
    config, options = _options(entry.name, entry.line, recipe, preset, rest)
    launch(entry.name, recipe, config, **options)


def _compare(arguments: list[str]) -> None:
    """The recipe `compare`, or `compare-links` of link predictors, with the systems named first."""
    count = next((n for n, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    systems, options = arguments[:count], arguments[count:]
    if not systems and not options:
        raise InputError("polypath compare: name two systems or more (`polypath run` lists them)")
    recipe = "compare-links" if systems and _is_link_predictor(systems[0]) else "compare"
    _run([recipe, *(["--systems", *systems] if systems else []), *options])


def _is_link_predictor(name: str) -> bool:
    from polypath.recipes.catalogue import catalogue

    entry = catalogue().get(name.partition("/")[0])
    if entry is not None and entry.domain != "graphs":
        return False

    from polypath.recipes.links import ROSTER

    return name in ROSTER


def _options(
    name: str, line: str, recipe: Any, preset: Callable[..., Any], arguments: list[str]
) -> tuple[Any, dict[str, Path | None]]:
    """The recipe's Config as the command line gives it, and where to run it."""
    chosen = "quick" if "--quick" in arguments else value(arguments, "--preset")
    resumed = value(arguments, "--resume")
    default = preset(name, recipe, chosen, None if resumed is None else Path(resumed))

    unprefixed = tyro.conf.arg(name="")
    command = make_dataclass(
        "Command",
        [
            ("config", Annotated[recipe.Config, unprefixed]),
            ("options", Annotated[RunOptions, unprefixed]),
        ],
    )
    given = parse(command, arguments, f"polypath run {name}", line, command(default, RunOptions()))
    if resumed is not None and given.config != default:
        raise InputError(
            f"{resumed} keeps the configuration it has; resume it without other options"
        )
    return given.config, {"out": given.options.out, "resume": given.options.resume}


def _recipe_of(arguments: list[str]) -> str:
    """The recipe of the run that is to be resumed, where no name was given."""
    folder = value(arguments, "--resume")
    if folder is None:
        raise InputError("polypath run: name a recipe first (`polypath run` lists them)")

    from polypath.training.run import Run

    return Run.open(Path(folder)).recipe


def _list_recipes() -> None:
    from rich.console import Console
    from rich.table import Table

    from polypath.recipes.catalogue import catalogue

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("domain", "recipe", "what it does"):
        table.add_column(column)
    for entry in sorted(catalogue().values(), key=lambda entry: (entry.domain, entry.name)):
        table.add_row(entry.domain, entry.name, entry.line)
    Console().print(table)


def _report(arguments: list[str]) -> None:
    """Write the page of a run again."""

    @dataclass(frozen=True)
    class Arguments:
        run: tyro.conf.Positional[Path]
        """The run's folder."""

    given = parse(Arguments, arguments, "polypath report", "Write the page of a run again.")

    from polypath.report.page import render

    print(render(given.run))


def _inspect(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Arguments:
        checkpoint: tyro.conf.Positional[Path]
        """A folder that polypath or transformers saved."""
        text: Path | None = None
        """A text file or a folder of them; the standard library's own source by default."""
        tokens: int = 4096
        """How many tokens of it to read."""
        context: int = 256
        """Tokens in a window."""
        out: Path | None = None
        """The page; CHECKPOINT-routes.html by default."""

    line = "Where a text's tokens go in a checkpoint, on one page."
    given = parse(Arguments, arguments, "polypath inspect", line)

    from polypath.recipes.show import print_outcome
    from polypath.report import write_report
    from polypath.report.inspection import inspect

    outcome = inspect(given.checkpoint, given.text, given.tokens, given.context)
    page = given.out or Path(f"{given.checkpoint.resolve()}-routes.html")
    write_report(outcome, page)
    print_outcome(outcome)
    print(f"report: {page.resolve()}")


def _table(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Arguments:
        folder: tyro.conf.Positional[Path] = Path("results")
        """A folder of results or runs."""
        markdown: bool = False
        """Print Markdown, as in docs/results.md."""

    line = "Every result under a folder as one table."
    given = parse(Arguments, arguments, "polypath table", line)

    from polypath.recipes.show import print_table
    from polypath.report import results_table

    print_table(results_table(given.folder), markdown=given.markdown)


def _fail(line: str, code: int) -> None:
    print(f"polypath: {line}", file=sys.stderr)
    raise SystemExit(code)
