"""A test file that torchrun starts again, as a script on several ranks."""

import faulthandler
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from polypath.training import distribution


def torchrun(file: str, *arguments: object, ranks: int = 2) -> None:
    """Run `file` on so many ranks; what a rank says when it fails is what the test says."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *launcher, file, *map(str, arguments)]
    own = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=own)
    said = [line for line in ran.stderr.splitlines() if line.startswith("[rank")]
    assert ran.returncode == 0, "\n".join(said) or ran.stderr


def as_rank(work: Callable[[Path], None]) -> None:
    """What such a script does: join the others, and `work` in the folder that it was given.

    As in other tests, warnings are errors and fresh memory is NaN. Ranks that wait for each other
    for a minute say where, and end. None leaves before all are done, and none tears its interpreter
    down: threads of gloo have been seen to abort in that.
    """
    faulthandler.enable()
    faulthandler.dump_traceback_later(60, exit=True)
    warnings.simplefilter("error")
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    distribution.start("cpu")
    work(Path(sys.argv[1]))
    distribution.wait()
    sys.stdout.flush()
    os._exit(0)
