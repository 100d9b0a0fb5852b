"""Writing files so that a kill or a full disk never leaves half a file under its final name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polypath.errors import InputError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses while `path` is written into one clear InputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = "the disk is full"
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            problem = "the folder may not be written to"
        else:
            problem = error.strerror or str(error)
        raise InputError(
            f"cannot write {path}: {problem}; what was saved before is intact"
        ) from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in the place of `path`.

    Raises InputError when the disk is full or the folder may not be written to; `path` then is what
    it was before.
    """
    part = path.with_name(f".{path.name}.part")
    with disk_errors(path):
        try:
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Put `text` in the place of the file `path`, whole or not at all."""
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
