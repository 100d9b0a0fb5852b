"""align and unlearn: a part of a checkpoint is trained, and a new checkpoint comes out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from polypath.cli.operations import Text, show, show_plan
from polypath.cli.parsing import parse
from polypath.cli.progress import progress
from polypath.errors import InputError


@dataclass(frozen=True)
class Align:
    """Routers towards those of questions that are answered right (RoMA)."""

    checkpoint: tyro.conf.Positional[Path]
    """A folder that transformers or polypath saved, with routed layers."""
    data: Path
    """Questions and answers, one JSON object a line: question and answer."""
    out: Path | None = None
    """The new checkpoint; CHECKPOINT-aligned by default."""
    dry_run: bool = False
    """Print sizes and costs, and change nothing."""
    layers: int = 5
    """The last so many routed layers are trained."""
    neighbours: int = 3
    """How many questions pull one."""
    epsilon: float | None = None
    """Instead: all questions as near as this, of a kernel from 0 to 1."""
    weight: float = 5.0
    """Weight of the pull; 0 is plain router tuning."""
    learning_rate: float = 1e-4
    """Of Adam."""
    steps: int = 300
    """Steps of training."""
    batch: int = 16
    """Questions in a step."""
    refresh: int | None = None
    """Steps after which neighbours are looked at again; never by default."""
    context: int = 256
    """Tokens of a question, and of an answer, that are read."""
    seed: int = 0
    """Of the order of questions."""


def align(arguments: list[str]) -> None:
    """`polypath align`."""
    line = "Train a checkpoint's routers towards those of questions that it answers right."
    given = parse(Align, arguments, "polypath align", line)

    from polypath.surgery.align import AlignConfig
    from polypath.surgery.teaching import align_checkpoint, plan_alignment

    if given.context < 1:
        raise InputError(f"align: --context {given.context}; at least 1 is needed")
    config = AlignConfig(
        layers=given.layers,
        neighbours=given.neighbours,
        epsilon=given.epsilon,
        weight=given.weight,
        learning_rate=given.learning_rate,
        steps=given.steps,
        batch=given.batch,
        refresh=given.refresh,
        seed=given.seed,
    )
    if given.dry_run:
        plan = plan_alignment(given.checkpoint, given.data, config, given.context)
        show_plan(plan, given.checkpoint)
        return
    out = given.out or Path(f"{given.checkpoint.resolve()}-aligned")
    with progress(None) as told:
        done = align_checkpoint(given.checkpoint, out, given.data, config, given.context, told)
    show(done, given.checkpoint, out)
    for name, change in (("trained on", done.samples), ("held out", done.held_out)):
        if change is not None:
            right, alike = change.success, change.agreement
            print(
                f"questions {name}: answered right {right[0]:.1%} → {right[1]:.1%}, "
                f"neighbours routed alike {alike[0]:.1%} → {alike[1]:.1%}"
            )


@dataclass(frozen=True)
class Unlearn:
    """One expert made to forget a text (UOE)."""

    checkpoint: tyro.conf.Positional[Path]
    """A folder that transformers or polypath saved, with routed layers."""
    forget: Path
    """The text to forget: a file, or a folder of them."""
    retain: Path
    """A text to keep, on which utility is measured, and which some objectives train."""
    out: Path | None = None
    """The new checkpoint; CHECKPOINT-unlearned by default."""
    dry_run: bool = False
    """Print which expert it would be and how much would be trained, and change nothing."""
    objective: Literal["ga", "gdiff", "npo", "rmu"] = "gdiff"
    """What is minimised: gradient ascent, the same with the retained text, NPO or RMU."""
    scope: Literal["expert", "experts", "routers", "all"] = "expert"
    """What is trained: the expert that the text engages most and its router, or a baseline's."""
    count: int = 1
    """How many experts."""
    anchor: float = 1.0
    """Weight of the anchor that keeps the text at its expert."""
    learning_rate: float = 1e-4
    """Of AdamW."""
    steps: int = 100
    """Steps at most."""
    goal: float | None = None
    """Stop when no more than this share of the forgotten text's tokens is told right."""
    reading: tyro.conf.OmitArgPrefixes[Text] = field(default_factory=Text)


LOOKS = 20
"""How often efficacy and utility are looked at on the way."""


def unlearn(arguments: list[str]) -> None:
    """`polypath unlearn`."""
    line = "Make the expert that a text engages most forget it; all other experts stay."
    given = parse(Unlearn, arguments, "polypath unlearn", line)
    if given.reading.text is not None:
        raise InputError("unlearn: --forget and --retain say which texts; leave out --text")

    from polypath.surgery.checkpoints import Reading
    from polypath.surgery.objectives import GA, GDIFF, NPO, RMU
    from polypath.surgery.teaching import plan_unlearning, unlearn_checkpoint
    from polypath.surgery.unlearn import Unlearning

    objectives = {"ga": GA, "gdiff": GDIFF, "npo": NPO, "rmu": RMU}
    config = Unlearning(
        objective=objectives[given.objective](),
        scope=given.scope,
        count=given.count,
        anchor=given.anchor,
        learning_rate=given.learning_rate,
        steps=given.steps,
        goal=given.goal,
        every=max(1, given.steps // LOOKS),
    )
    own = asdict(given.reading)
    forget, retain = (Reading(**own | {"text": path}) for path in (given.forget, given.retain))
    if given.dry_run:
        show_plan(plan_unlearning(given.checkpoint, forget, config), given.checkpoint)
        return
    out = given.out or Path(f"{given.checkpoint.resolve()}-unlearned")
    with progress(2 + given.steps // config.every) as told:
        done = unlearn_checkpoint(given.checkpoint, out, forget, retain, config, told)
    show(done, given.checkpoint, out)
    first, last = done.curve[0], done.curve[-1]
    print(
        f"tokens told right, of what is forgotten {first.efficacy:.1%} → {last.efficacy:.1%}, "
        f"of what is kept {first.utility:.1%} → {last.utility:.1%}; {done.stopped}"
    )
