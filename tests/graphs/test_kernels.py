import os
import subprocess
import sys

CODE = """
import torch
from polypath.graphs import Adjacency, common_neighbours
torch.set_num_threads(1)
square = Adjacency.of(torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3], [1, 3, 0, 2, 1, 3, 0, 2]]))
common_neighbours(square, torch.tensor([[0], [2]]))
print(torch.get_num_threads())
"""


def test_kernels_leave_the_number_of_threads() -> None:
    """In a process of its own: the first launch alone would change it."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    asked = [sys.executable, "-c", CODE]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"
