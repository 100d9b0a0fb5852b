"""Errors that are the user's to mend, told in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """What was given is wrong; the message says what, where, and what would be right."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones, with the nearest of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
