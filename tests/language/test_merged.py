from pathlib import Path

import pytest
import torch

from hosts import change_json, tiny_model, tiny_switch
from polypath import RoutedLayers, attach, save_pretrained
from polypath.errors import InputError
from polypath.experts import ExpertList, FeedForwardExperts
from polypath.experts.activations import ACTIVATIONS
from polypath.language import from_pretrained
from polypath.language.families import decoder_of
from polypath.language.merged import Merged, activation_of, described, shrink, smaller


def test_a_description_comes_back_as_it_was_written() -> None:
    for merged in (
        Merged("adopted", 3),
        Merged(RoutedLayers(num_experts=6, k=2, hidden=5), 4),
        Merged("adopted", 2, 4, [[3, 1], [2, 2]]),
    ):
        assert Merged.from_json(merged.to_json()).to_json() == merged.to_json()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected an object"),
        ({"layer": "native", "stored": 2}, "an object or 'adopted' is right"),
        ({"layer": "adopted", "stored": 0}, "one expert at least"),
        ({"layer": "adopted", "stored": 2, "rank": 3, "rows": [[1, 1]]}, "two numbers of rows"),
        ({"layer": "adopted"}, "stored missing"),
    ],
)
def test_other_values_are_refused(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Merged.from_json(value)


def test_a_layer_says_what_it_is_by_itself() -> None:
    routed = RoutedLayers(num_experts=4, k=2, hidden=[3, 5, 7], shared_hidden=[1, 2, 3], losses={})
    model = attach(tiny_model("Llama"), routed)
    layers = decoder_of(model).routed()
    own = described(routed, layers[1], 1)
    assert isinstance(own, RoutedLayers) and (own.hidden, own.shared_hidden) == (5, 2)
    assert described(object(), layers[1], 1) == "adopted"
    with pytest.raises(InputError, match="a function made layer 1"):
        described(None, layers[1], 1)
    with pytest.raises(InputError, match="'reuse' router"):
        described(RoutedLayers("reuse"), layers[1], 1)


def test_smaller_banks_are_like_the_whole_ones() -> None:
    bank = FeedForwardExperts(4, 6, 5, "geglu", bias=True, transposed=True).to(torch.bfloat16)
    made = smaller(bank, 2)
    assert {n: p.shape[1:] for n, p in made.named_parameters()} == {
        n: p.shape[1:] for n, p in bank.named_parameters()
    }
    assert made.down_proj.dtype == torch.bfloat16 and len(made.down_proj) == 2
    assert activation_of(made) is ACTIVATIONS["geglu"]
    switch = attach(tiny_switch()).encoder.block[1].layer[1].mlp
    assert activation_of(switch.experts) is ACTIVATIONS["relu"]
    with pytest.raises(InputError, match="no expert of two maps"):
        activation_of(ExpertList([torch.nn.Linear(2, 2)]))
    with pytest.raises(InputError, match="9 experts of 8"):
        shrink(switch, Merged("adopted", 9))


def test_a_broken_description_on_disk_gets_one_line(tmp_path: Path) -> None:
    model = attach(tiny_model("Olmoe"))
    decoder = decoder_of(model)
    merged = Merged("adopted", 3)
    shrink(decoder.routed()[0], merged, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    torch.nn.init.normal_(decoder.routed()[0].experts.bank.down_proj)
    decoder.host.origins[0] = merged
    save_pretrained(model, tmp_path / "model")
    from_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "polypath.json"
    layers = {"0": {"merged": {**merged.to_json(), "stored": 0}}, "1": "adopted", "2": "adopted"}
    change_json(path, layers=layers)
    with pytest.raises(InputError, match="one expert at least"):
        from_pretrained(tmp_path / "model")
