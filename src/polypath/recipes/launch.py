"""Starting a recipe: its configuration, its run folder, and what is shown at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from polypath.errors import InputError, unknown
from polypath.plain import decode
from polypath.recipes.show import print_outcome
from polypath.report import Outcome
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
        return decode(recipe.Config, run.config, f"{resumed / 'config.yaml'}: config")
    if chosen is None:
        return recipe.Config()
    if chosen not in recipe.PRESETS:
        raise unknown(f"preset of {name}", chosen, recipe.PRESETS)
    return replace(recipe.Config(), **recipe.PRESETS[chosen])


def launch(
    name: str, recipe: ModuleType, config: Any, out: Path | None, resume: Path | None
) -> None:
    """Run a recipe in its folder and show what came out; under torchrun, on all ranks together."""
    wanted = getattr(config, "device", "cpu")
    device = distribution.start(None if wanted == "auto" else wanted)
    try:
        run = _begin(name, config, out) if resume is None else Run.open(resume)
        outcome = _run(recipe, config, replace(run, device=str(device)))
        if distribution.is_main():
            outcome.save(run.folder / "outcome.json")
            page = render(run.folder)
            print_outcome(outcome)
            print(f"report: {page.resolve()}")
        distribution.wait()  # torchrun stops all ranks when one that has ended did not end well
    except Interrupted:
        console.print(f"stopped; carry on with: polypath run --resume {run.folder}")
        raise SystemExit(130) from None
    finally:
        distribution.stop()


def _run(recipe: ModuleType, config: Any, run: Run) -> Outcome:
    """What a recipe finds; bad input that is met before anything was done leaves no folder."""
    try:
        return recipe.run(config, run)
    except InputError:
        if distribution.is_main():
            run.discard()
        raise


def _begin(name: str, config: Any, out: Path | None) -> Run:
    """A new run folder, made by rank 0 and opened by all."""
    folder = Path(distribution.from_main(str(out or new_folder(name))))
    if distribution.is_main():
        Run.create(folder, name, config)
    distribution.wait()
    return Run.open(folder)
