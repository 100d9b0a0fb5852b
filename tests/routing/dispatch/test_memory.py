import sys
from pathlib import Path

import pytest
import torch

from polypath.routing.dispatch.memory import PAGE, Memory, on_huge_pages


def test_memory_is_shared_by_name():
    memory = Memory(torch.zeros(0, dtype=torch.float64), rows=5)
    few, many = memory.take("a", 2, 3), memory.take("a", 5, 3)
    assert few.shape == (2, 3)
    assert many.shape == (5, 3)
    assert few.dtype == torch.float64
    assert few.data_ptr() == many.data_ptr()
    assert memory.take("b", 2, 3).data_ptr() != few.data_ptr()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked of Linux")
def test_large_tensors_are_marked_for_huge_pages():
    """smaps lists, for every mapping, its range and then its flags; hg is the mark."""
    tensor = torch.zeros(4 * PAGE, dtype=torch.uint8)
    middle = tensor.data_ptr() + 2 * PAGE
    assert on_huge_pages(tensor) is tensor
    assert not tensor.any()
    marked = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, stop = (int(end, 16) for end in head.split("-"))
        if head == "VmFlags:" and start <= middle < stop:
            marked = "hg" in line.split()
    assert marked


def test_small_and_empty_tensors_pass():
    for size in (0, 1, PAGE // 2):
        tensor = torch.ones(size, dtype=torch.uint8)
        assert on_huge_pages(tensor) is tensor
        assert tensor.all()
