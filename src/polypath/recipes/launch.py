"""Starting a recipe: its configuration, its run folder, and what is shown at the end."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from polypath.errors import InputError, unknown
from polypath.recipes.show import print_outcome
from polypath.report.page import render
from polypath.training import distribution
from polypath.training.display import console
from polypath.training.interrupt import Interrupted
from polypath.training.run import Run, new_folder


def preset(name: str, recipe: ModuleType, chosen: str | None, resumed: Path | None) -> Any:
    """The Config that the command line's options are laid over: stored, preset or default."""
    if resumed is not None:
        run = Run.open(resumed)
        if run.recipe != name:
            raise InputError(f"{resumed} is a run of {run.recipe}, not of {name}")
        return stored_config(recipe.Config, run)
    if chosen is None:
        return recipe.Config()
    if chosen not in recipe.PRESETS:
        raise unknown(f"preset of {name}", chosen, recipe.PRESETS)
    return replace(recipe.Config(), **recipe.PRESETS[chosen])


def stored_config(kind: type, run: Run) -> Any:
    """The Config that a run folder holds; raises InputError for a field that does not fit."""
    hints = get_type_hints(kind)
    where = run.folder / "config.yaml"
    for name in run.config.keys() - hints.keys():
        raise InputError(f"{where}: {unknown('field', name, hints)}")
    for field in fields(kind):
        if field.name not in run.config:
            raise InputError(f"{where}: the field {field.name!r} is missing")
    return kind(**{n: _fitted(v, hints[n], f"{where}: {n}") for n, v in run.config.items()})


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """The stored value as its field's type has it."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = any(type(value) is kind if isinstance(kind, type) else value == kind for kind in kinds)
    if not fits:
        wanted = getattr(hint, "__name__", str(hint))
        raise InputError(f"{where} is {value!r}; {wanted} is needed")
    return value


def launch(
    name: str, recipe: ModuleType, config: Any, out: Path | None, resume: Path | None
) -> None:
    """Run a recipe in its folder and show what came out; under torchrun, on all ranks together."""
    wanted = getattr(config, "device", "cpu")
    device = distribution.start(None if wanted == "auto" else wanted)
    try:
        run = _begin(name, config, out) if resume is None else Run.open(resume)
        outcome = recipe.run(config, replace(run, device=str(device)))
        if distribution.is_main():
            outcome.save(run.folder / "outcome.json")
            page = render(run.folder)
            print_outcome(outcome)
            print(f"report: {page.resolve()}")
    except Interrupted:
        console.print(f"stopped; carry on with: polypath run --resume {run.folder}")
        raise SystemExit(130) from None
    finally:
        distribution.stop()


def _begin(name: str, config: Any, out: Path | None) -> Run:
    """A new run folder, made by rank 0 and opened by all."""
    folder = Path(distribution.from_main(str(out or new_folder(name))))
    if distribution.is_main():
        Run.create(folder, name, config)
    distribution.wait()
    return Run.open(folder)
