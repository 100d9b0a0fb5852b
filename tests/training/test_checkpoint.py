import pytest
import torch

from polypath.errors import InputError
from polypath.training.checkpoint import load_state, save_state


def test_round_trip_of_shared_strided_and_integer_tensors(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"base": base, "turned": base.T, "state": torch.get_rng_state()}
    save_state(tmp_path / "s", tensors, {"step": 3, "names": ["a"]})
    loaded, facts = load_state(tmp_path / "s")
    assert facts == {"step": 3, "names": ["a"]}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "s"
    save_state(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a whole checkpoint"):
        load_state(path)


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "s")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        load_state(tmp_path / "s")
