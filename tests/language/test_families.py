import pytest
import torch
from torch import nn

from hosts import DENSE, NATIVE, detections, tiny_dino, tiny_model, tiny_switch
from polypath import RoutedLayers, attach, detach, from_pretrained, record, save_pretrained
from polypath.language.families import decoder_of
from polypath.routing import FirstCome, MoE


@pytest.mark.parametrize("kind", [*DENSE, *NATIVE])
def test_parts_are_where_the_family_says(kind: str) -> None:
    decoder = decoder_of(tiny_model(kind))
    for index, layer in enumerate(decoder.layers):
        assert decoder.mlp(index) in list(layer.modules())
        assert decoder.attention(index) in list(layer.modules())
        assert decoder.network(index) == [decoder.mlp(index)]


def test_an_encoder_comes_before_its_decoder() -> None:
    model = tiny_switch()
    decoder = decoder_of(model)
    assert list(decoder.layers) == [*model.encoder.block, *model.decoder.block]
    attach(model)
    assert list(decoder.routed()) == [1, 3, 5, 7]


def test_switch_transformers_are_adopted_as_they_are(tmp_path) -> None:
    model = tiny_switch()
    ids = torch.randint(61, (3, 12))
    said = torch.randint(61, (3, 7))

    def logits(one: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return one(input_ids=ids, decoder_input_ids=said).logits

    before = logits(model)
    attach(model)
    with record(model) as routes:
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-4)
    first = next(iter(routes.joined().values()))
    assert (first.experts == -1).any() and (first.experts >= 0).any()  # full experts drop
    layer = decoder_of(model).routed()[1]
    assert isinstance(layer.router.selection, FirstCome) and set(layer.router.losses) == {
        "load_balance",
        "router_z",
    }
    save_pretrained(model, tmp_path / "model")
    plain = type(model).from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(plain), before, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits(from_pretrained(tmp_path / "model")), before)
    detach(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_a_detector_hosts_routed_layers(tmp_path) -> None:
    model = tiny_dino()
    routed = RoutedLayers(num_experts=4, k=2, hidden=12, kind="relu", bias=True)
    with record(attach(model, routed)) as routes:
        words, boxes = detections(model)
    assert len(routes) == 3 and len(next(iter(routes.joined().values()))) == 18
    block = decoder_of(model).layers[0]
    assert isinstance(block.fc2, MoE) and isinstance(block.fc1, nn.Identity)
    save_pretrained(model, tmp_path / "model")
    again = detections(from_pretrained(tmp_path / "model"))
    torch.testing.assert_close(again[0], words)
    torch.testing.assert_close(again[1], boxes)
