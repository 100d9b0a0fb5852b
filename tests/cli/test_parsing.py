from dataclasses import dataclass

import pytest

from polypath.cli.parsing import parse, value
from polypath.errors import InputError


@dataclass(frozen=True)
class Options:
    """Options."""

    steps: int = 3
    """Steps."""
    name: str = "plain"
    """A name."""


def test_values_and_complaints() -> None:
    assert parse(Options, ["--steps", "5"], "it", "line") == Options(5)
    assert parse(Options, [], "it", "line", Options(name="own")) == Options(name="own")
    with pytest.raises(InputError, match=r"did you mean --steps\?"):
        parse(Options, ["--step", "5"], "it", "line")
    with pytest.raises(InputError, match=r"`it --help`"):
        parse(Options, ["--steps", "many"], "it", "line")
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], "it", "line")


def test_what_follows_an_option() -> None:
    words = ["--out=here", "--steps", "5", "--last"]
    assert value(words, "--out") == "here" and value(words, "--steps") == "5"
    assert value(words, "--last") is None and value(words, "--none") is None
