"""Train several systems on the same text and budget, and see on one page what tells them apart.

Each system is a recipe on text, by its own model; RECIPE/ARM names another of its arms. What is
measured beside the loss comes from `polypath.recipes.measures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import ModuleType

from polypath.errors import InputError, unknown
from polypath.recipes import measures, text, where
from polypath.recipes.catalogue import catalogue, find
from polypath.recipes.text import QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.report import Claim, Outcome, judge
from polypath.training.run import Run

DOMAIN = "language"


@dataclass(frozen=True)
class Config(TextConfig):
    """Who is compared, on what, and for how long."""

    systems: Sequence[str] = ("moe-lm", "moe-lm/dense-active")
    """Recipes on text, or RECIPE/ARM; the first is what the others are held against."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.systems)) < len(self.systems) or not self.systems:
            raise InputError(f"systems={' '.join(self.systems)!r}: each may be named once")
        arms(self)


PRESETS = {"quick": QUICK}


def arms(config: Config) -> dict[str, Arm]:
    """The named systems, each with the sizes of this comparison and its own options."""
    return {name: _arm(name, config) for name in config.systems}


def _arm(name: str, config: Config) -> Arm:
    recipe, _, wanted = name.partition("/")
    found = _arms_on_text(recipe, find(recipe).load(), config)
    if wanted and wanted not in found:
        raise InputError(f"{recipe}: {unknown('arm', wanted, found)}")
    return found[wanted or next(iter(found))]


def _arms_on_text(recipe: str, module: ModuleType, config: Config) -> dict[str, Arm]:
    """A recipe's arms under the sizes of `config`; its other options keep their defaults."""
    own = getattr(module, "Config", None)
    if module.__name__ == __name__ or not (isinstance(own, type) and issubclass(own, TextConfig)):
        known = (e for e in catalogue().values() if e.domain == DOMAIN)
        others = [e.name for e in known if e.module != __name__ and e.name != recipe]
        raise InputError(f"{recipe} has no arms on text to compare; {', '.join(others)} may have")
    return module.arms(own(**{f.name: getattr(config, f.name) for f in fields(TextConfig)}))


def run(config: Config, run: Run) -> Outcome:
    """Train every system under every seed; compare what they reach and how they route."""
    parts = text.train(config, run, arms(config))
    routed = {name: own for name, own in parts.items() if arms(config)[name].routed is not None}
    return text.conclude(
        config,
        run,
        parts,
        claims(parts),
        tables=[measures.table(routed)] if routed else [],
        figures=measures.curves(run.metrics(), list(routed)) + where.load_maps(routed),
    )


def claims(parts: Parts) -> list[Claim]:
    """Whether each system differs from the first, seed by seed."""
    bits = bits_per_byte(parts)
    first, *others = bits
    return [
        judge(
            f"{name} is better than {first} (bits per byte, difference)",
            "this comparison",
            first,
            bits[name],
            bits[first],
        )
        for name in others
    ]
