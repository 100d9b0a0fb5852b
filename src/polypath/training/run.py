"""The run folder: everything that a recipe leaves, written so that a kill loses nothing."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polypath.errors import InputError
from polypath.files import disk_errors, replace_text
from polypath.plain import encode

VERSION = 1


@dataclass(frozen=True)
class Run:
    """One run of a recipe in its folder.

    config.yaml: recipe, version and every field of its Config. metrics.jsonl: one JSON object a
    line. checkpoints/: the state of each arm and seed. device: where this process trains.
    """

    folder: Path
    recipe: str
    config: dict[str, Any]
    device: str = "cpu"

    @classmethod
    def create(cls, folder: Path, recipe: str, config: Any) -> Run:
        """Begin a run in a new or empty folder; raises InputError when it holds something."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} exists and is not empty; choose another --out, or --resume it"
            )
        values = encode(config)
        with disk_errors(folder):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        stored = {"recipe": recipe, "version": VERSION, "config": values}
        replace_text(folder / "config.yaml", yaml.safe_dump(stored, sort_keys=False))
        return cls(folder, recipe, values)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run; raises InputError when it is none, or one of another version."""
        path = folder / "config.yaml"
        if not path.is_file():
            raise InputError(f"{folder} is not a run folder: it has no config.yaml")
        try:
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
            recipe, version, config = stored["recipe"], stored["version"], stored["config"]
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged; it needs recipe, version and config") from error
        if version != VERSION:
            raise InputError(
                f"{folder} was written in version {version} of the run format, this is version "
                f"{VERSION}; read it with the release that wrote it, or start a new run"
            )
        return cls(folder, recipe, config)

    def discard(self) -> None:
        """Remove the folder of a run that left nothing but its configuration."""
        if {path.name for path in self.folder.rglob("*")} == {"config.yaml", "checkpoints"}:
            shutil.rmtree(self.folder)

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def checkpoint(self, arm: str, seed: int) -> Path:
        """Where the training state of one arm and seed is kept."""
        return self.folder / "checkpoints" / f"{arm.replace('/', '.')}-seed{seed}.safetensors"

    def log(self, **values: Any) -> None:
        """Append one line to the metrics."""
        line = json.dumps(values) + "\n"
        path = self.metrics_path
        with self._metrics_locked(), disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of the metrics; a last line that a kill cut short is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").split("\n")
        whole = lines[:-1]
        try:
            return [json.loads(line) for line in whole]
        except json.JSONDecodeError as error:
            raise InputError(f"{self.metrics_path} is damaged: {error}") from error

    def forget_after(self, arm: str, seed: int, step: int) -> None:
        """Drop the metrics of one arm and seed that lie after `step`, to be measured again."""
        with self._metrics_locked():
            kept = [
                line
                for line in self.metrics()
                if (line["arm"], line["seed"]) != (arm, seed) or line["step"] <= step
            ]
            replace_text(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))

    @contextmanager
    def _metrics_locked(self) -> Iterator[None]:
        """Keep the processes of a run, which write one file of metrics, out of each other's way."""
        path = self.folder / "metrics.lock"
        with disk_errors(path), path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def new_folder(recipe: str, root: Path = Path("runs")) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, … that does not exist."""
    number = 1
    while (root / f"{recipe}-{number}").exists():
        number += 1
    return root / f"{recipe}-{number}"


def commit() -> str:
    """The commit of the source that runs, "-dirty" behind it when changed, or the version."""
    here = Path(__file__).parent
    asked = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        from polypath import __version__

        return f"v{__version__}"


def machine() -> dict[str, str]:
    """What measured numbers depend on: processor, cores, accelerator, versions."""
    import torch

    facts = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
