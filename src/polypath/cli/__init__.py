"""The command line."""

from polypath.cli.main import main

__all__ = ["main"]
