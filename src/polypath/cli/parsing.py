"""What the user typed, as typed values; complaints become one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from polypath.errors import InputError

T = TypeVar("T")


def parse(
    kind: Callable[..., T], arguments: list[str], prog: str, line: str, default: Any = None
) -> T:
    """What tyro makes of the arguments; its complaints become one line."""
    complaint = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, prog=prog, description=line, **extra)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise InputError(f"{_one_line(complaint.getvalue())} (`{prog} --help`)") from None


def _one_line(complaint: str) -> str:
    """The message of tyro's framed complaint, and the option that it thinks was meant."""
    # Where frames cannot be drawn, the title is a section of its own and not part of a rule.
    parts = re.split(r"^.*[─-]{4,}.*$", complaint, flags=re.MULTILINE)
    sections = [" ".join(re.sub("[│╭╮╰╯─]", " ", part).split()) for part in parts]
    told = [section for section in sections if section]
    message = told[min("╭" not in complaint, len(told) - 1)]
    meant = re.search(r"Perhaps you meant: (--[\w-]+)", " ".join(sections))
    return message + (f"; did you mean {meant[1]}?" if meant else "")


def value(arguments: list[str], option: str) -> str | None:
    """What follows `option` on the command line, or None."""
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.split("=", 1)[1]
        if argument == option and place + 1 < len(arguments):
            return arguments[place + 1]
    return None
