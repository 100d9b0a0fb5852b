"""What every test gets: NaN in fresh memory, one thread, fixed seeds, no hub."""

import os
import random
import shutil
from pathlib import Path
from typing import NoReturn

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent

# For the processes that tests start, and for libraries that read them when they are imported.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
torch.set_num_threads(1)

# Deterministic mode is what makes torch fill uninitialised memory: NaN, or the largest integer.
torch.utils.deterministic.fill_uninitialized_memory = True
torch.use_deterministic_algorithms(True, warn_only=True)

hypothesis.settings.register_profile(
    "house", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("house")


class TorchRandom:
    """torch's generator, for hypothesis to reset before each example as it does Python's."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps only a weak reference
hypothesis.register_random(TORCH_RANDOM)


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(0)


def absent(reason: str) -> NoReturn:
    """Skips the test; fails it in CI, where everything has to be there."""
    if os.environ.get("POLYPATH_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data sets: POLYPATH_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("POLYPATH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        absent(f"no data folder at {folder}; POLYPATH_DATA names another")
    return folder


@pytest.fixture(scope="session")
def shakespeare(data_dir: Path) -> Path:
    """The file of Tiny Shakespeare, 1.1 MB of text."""
    path = data_dir / "text" / "tinyshakespeare.txt"
    if not path.is_file():
        absent(f"no file {path}")
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium, for playwright's `executable_path`."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        absent("no chromium on the PATH; Debian's package chromium brings it")
    return path
