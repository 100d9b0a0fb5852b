"""Folders that are replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from polypath.errors import InputError


def former(folder: Path) -> Path:
    """Where what `folder` held stands for the moment in which it is replaced."""
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def replaced(folder: Path, own: Callable[[str], bool]) -> Iterator[Path]:
    """A draft folder, which takes the place of `folder` when the block ends well.

    Until then nothing that `folder` holds is touched, and an error or a kill leaves it as it was.
    Entries of `folder` for whose names `own` is false are kept, those for which it is true are what
    the draft replaces.
    Raises InputError when the disk is full, the folder may not be written to, is a file, or is the
    current one.
    """
    folder = folder.resolve()
    if folder.is_file():
        raise InputError(f"{folder} is a file; the name of a folder is right")
    if Path.cwd().is_relative_to(folder):
        raise InputError(f"{folder} is the current folder; a folder inside it is right")
    draft = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        if folder.exists():
            shutil.copytree(
                folder,
                draft,
                ignore=lambda place, names: [n for n in names if place == str(folder) and own(n)],
                copy_function=_link,
                dirs_exist_ok=True,
            )
        for path in [*draft.rglob("*"), draft]:
            _sync(path)
        _swap(draft, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write {folder}: {reason}; what was saved before is intact"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, folder: Path) -> None:
    """Put the draft in the place of the folder; what was there goes when the draft stands."""
    aside = former(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
    os.rename(draft, folder)
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    """Make the operating system write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
