from pathlib import Path

import pytest
import torch

from hosts import tiny_model
from polypath import RoutedLayers, attach, save_pretrained
from polypath.errors import InputError
from polypath.language.families import decoder_of
from polypath.language.piecewise import CHAINED, Pieces, forget

KINDS = ["Llama", "Qwen3", "Olmoe", "Mixtral", "Qwen3Moe", "DeepseekV3"]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_one_by_one_are_the_whole_model(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    pieces = Pieces(tmp_path)
    ids = [torch.randint(61, (2, 9)) for _ in range(2)]
    hidden = pieces.embedded(ids)
    for index in range(3):
        pieces.through(pieces.layer_model(index), hidden)
    with torch.no_grad():
        for states, batch in zip(hidden, ids, strict=True):
            wanted = model.model(input_ids=batch).last_hidden_state
            torch.testing.assert_close(model.model.norm(states), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_has_the_weights_that_transformers_gives_it(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    pieces = Pieces(tmp_path)
    for index in range(3):
        found = decoder_of(pieces.layer_model(index)).layers[0].state_dict()
        wanted = decoder_of(model).layers[index].state_dict()
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_names_shapes_and_tensors_outside_of_the_layers(tmp_path: Path) -> None:
    model = tiny_model("Llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    pieces = Pieces(tmp_path)
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert set(pieces.names()) == names and pieces.table == "model.embed_tokens"
    for name in names:
        wanted = model.get_parameter(name)
        torch.testing.assert_close(pieces.tensor(name), wanted.detach(), rtol=0, atol=0)
        assert pieces.shape(name).shape == wanted.shape and pieces.shape(name).is_meta
    assert pieces.dtype == torch.float32 and pieces.prefix == "model.layers"
    with pytest.raises(InputError, match=r"model\.nothing is missing"):
        pieces.tensor("model.nothing")
    with pytest.raises(InputError, match="token 61 of a vocabulary of 61"):
        pieces.embedded([torch.tensor([[61]])])


def test_what_is_forgotten_has_no_memory(tmp_path: Path) -> None:
    tiny_model("Llama").save_pretrained(tmp_path)
    model = Pieces(tmp_path).layer_model(0)
    forget(model)
    assert all(p.is_meta for p in model.parameters())


def test_folders_that_cannot_be_cut_up_are_refused(tmp_path: Path) -> None:
    tiny_model("Gemma2").save_pretrained(tmp_path / "gemma")
    with pytest.raises(InputError, match="gemma2 cannot be worked layer by layer"):
        Pieces(tmp_path / "gemma")
    assert "gemma2" not in CHAINED
    routed = attach(tiny_model("Llama"), RoutedLayers(num_experts=2, k=1))
    save_pretrained(routed, tmp_path / "routed")
    with pytest.raises(InputError, match="routed by polypath already"):
        Pieces(tmp_path / "routed")
    tiny_model("Olmoe").save_pretrained(tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        Pieces(tmp_path / "broken")
