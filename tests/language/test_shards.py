import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polypath.errors import InputError
from polypath.language.shards import check_experts, read_json, read_shapes, read_state

PARTS = ("gate.weight", "down.weight")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two files of one tensor each, and their index."""
    for name, size in (("a", 2), ("b", 3)):
        save_file({name: torch.full((size,), float(size))}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_shapes_and_tensors_of_all_files(sharded: Path) -> None:
    assert read_shapes(sharded) == {"a": (2,), "b": (3,)}
    state = read_state(sharded)
    assert state["a"].tolist() == [2, 2] and state["b"].tolist() == [3, 3, 3]


def test_tensors_lie_where_torch_puts_them(tmp_path: Path) -> None:
    odd = {str(size): torch.arange(size) for size in range(1, 9)}
    save_file(odd, tmp_path / "model.safetensors")
    state = read_state(tmp_path)
    assert {tensor.data_ptr() % 64 for tensor in state.values()} == {0}
    assert all(state[name].equal(tensor) for name, tensor in odd.items())


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"c": "a.safetensors"}, "c is not in it; model.safetensors.index.json says that it is"),
        ({"a": "c.safetensors"}, "c.safetensors is missing"),
        ({"a": "../a.safetensors"}, "its weight_map does not map tensors to file names"),
        ({"a": 1}, "its weight_map does not map tensors to file names"),
        (None, "its weight_map does not map tensors to file names"),
    ],
)
def test_wrong_indices_are_told(sharded: Path, weight_map: object, message: str) -> None:
    index = json.dumps({"weight_map": weight_map})
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError) as caught:
        read_shapes(sharded)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "all.pkl"])
def test_pickles_are_named_and_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"has its weights in {name}: a pickle can run code"):
        read_shapes(tmp_path)


def test_json_is_read_or_told(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    with pytest.raises(InputError, match=r"values.json: cannot be read: No such file"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"values.json: not JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"values.json: not JSON"):
        read_json(path)


def test_experts_are_alike_or_told(tmp_path: Path) -> None:
    def name(layer: int, expert: int, part: str) -> str:
        return f"layers.{layer}.experts.{expert}.{part}"

    whole = {name(la, e, p): (4, la + 1) for la in range(2) for e in range(3) for p in PARTS}
    check_experts(whole | {"norm.weight": (4,)}, tmp_path)
    for missing in whole:
        rest = {n: shape for n, shape in whole.items() if n != missing}
        with pytest.raises(InputError, match=rf"{missing} is missing; those of other experts"):
            check_experts(rest, tmp_path)
        with pytest.raises(InputError, match=rf"{missing} is \(5, 5\); those of other experts"):
            check_experts(whole | {missing: (5, 5)}, tmp_path)
