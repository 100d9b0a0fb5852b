import copy
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hosts import DENSE, NATIVE, refused, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach, from_pretrained, save_pretrained
from polypath.language.stacks import build_stack
from polypath.routing import MoE, RouterZ, record, routed_layers


@pytest.mark.parametrize("kind", NATIVE)
def test_adopted_models_are_plain_checkpoints(
    batch: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    model = tiny_model(kind)
    native = model(**batch).logits
    logits = attach(model)(**batch).logits
    layers = routed_layers(model)
    save_pretrained(model, tmp_path / "own")
    assert routed_layers(model) == layers and model(**batch).logits.equal(logits)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    assert plain(**batch).logits.equal(native)
    plain.save_pretrained(tmp_path / "theirs")
    assert sorted(p.name for p in (tmp_path / "own").iterdir()) == sorted(
        p.name for p in (tmp_path / "theirs").iterdir()
    )
    again = from_pretrained(tmp_path / "theirs")
    assert again(**batch).logits.equal(logits)
    assert list(routed_layers(again)) == list(layers)


@pytest.mark.parametrize("kind", DENSE | NATIVE)
def test_attached_models_come_back_to_the_same_logits(
    batch: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    model = attach(tiny_model(kind), RoutedLayers(num_experts=4, hidden=8, shared_hidden=4), [0])
    attach(model, RoutedLayers("hash", num_experts=3, kind="relu2"), [2])
    if kind in NATIVE and kind != "Qwen3Moe":  # whose layer 1 is dense
        attach(model, layers=[1])
    logits = model(**batch).logits
    state = torch.get_rng_state()
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert torch.get_rng_state().equal(state)
    assert again(**batch).logits.equal(logits)
    assert repr(again) == repr(model)
    save_pretrained(again, tmp_path / "again")
    for file in (tmp_path / "model").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize(
    "layers",
    [
        RoutedLayers(num_experts=4, bias_rate=0.1, gate="sigmoid", capacity=2.0),
        RoutedLayers(num_experts=4, scorer="cosine", gate="softmax"),
        RoutedLayers(num_experts=4, scorer="noisy", losses={"importance": 0.5}),
        RoutedLayers("expert-choice", num_experts=4, kind="gelu"),
        RoutedLayers("soft", num_experts=4, kind="geglu"),
    ],
)
def test_every_kind_of_layer_comes_back(
    batch: dict[str, Tensor], tmp_path: Path, layers: RoutedLayers
) -> None:
    model = attach(tiny_model("Llama"), layers)
    for name, buffer in model.named_buffers():
        if name.endswith("bias.value"):
            nn.init.normal_(buffer)
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert repr(again) == repr(model)
    assert again(**batch).logits.equal(model(**batch).logits)


def test_half_precision_stays(batch: dict[str, Tensor], tmp_path: Path) -> None:
    config = tiny_model("Llama").config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    attach(model, RoutedLayers(num_experts=4, bias_rate=0.1))
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert {n: t.dtype for n, t in again.state_dict().items()} == {
        n: t.dtype for n, t in model.state_dict().items()
    }
    assert again(**batch).logits.equal(model(**batch).logits)


@pytest.mark.parametrize("kind", ["Llama", "Olmoe"])
def test_tied_embeddings_stay_tied(batch: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    model = tiny_model(kind, tie_word_embeddings=True)
    attach(model, None if kind == "Olmoe" else RoutedLayers(num_experts=2))
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert again(**batch).logits.equal(model(**batch).logits)
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")


@pytest.mark.parametrize("kind", ["Llama", "Olmoe"])
def test_transformers_own_way_of_saving_is_this_one(
    batch: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    """As the Trainer calls it."""
    model = attach(tiny_model(kind), RoutedLayers(num_experts=2) if kind == "Llama" else None)
    twin = copy.deepcopy(model)
    nn.init.ones_(twin.lm_head.weight)
    save_pretrained(twin, tmp_path / "first")
    for own in (model, twin, from_pretrained(tmp_path / "first")):
        own.save_pretrained(tmp_path / "none", is_main_process=False)
        own.save_pretrained(tmp_path / "model", state_dict=own.state_dict(), is_main_process=True)
        assert from_pretrained(tmp_path / "model")(**batch).logits.equal(own(**batch).logits)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["Llama", "Olmoe"])
def test_large_models_become_several_files(
    batch: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    model = attach(tiny_model(kind), RoutedLayers(num_experts=4) if kind == "Llama" else None)
    save_pretrained(model, tmp_path / "model", max_shard_size=20_000)
    files = {path.name for path in (tmp_path / "model").glob("*.safetensors")}
    assert len(files) > 2
    assert from_pretrained(tmp_path / "model")(**batch).logits.equal(model(**batch).logits)
    (tmp_path / "model" / min(files)).unlink()
    with pytest.raises(InputError, match=f"{min(files)} is missing; model.safetensors.index.json"):
        from_pretrained(tmp_path / "model")


def test_layers_that_a_function_made_need_it_again(
    batch: dict[str, Tensor], tmp_path: Path
) -> None:
    def make(index: int) -> MoE:
        layer = build_stack(RoutedLayers(num_experts=3), 16, 4 + index, 1)[0]
        layer.router.capacity = 1.5
        return layer

    model = attach(tiny_model("Llama"), make, [1, 2])
    save_pretrained(model, tmp_path / "model")
    with pytest.raises(InputError, match="a function made layer 1; give it: from_pretrained"):
        from_pretrained(tmp_path / "model")
    again = from_pretrained(tmp_path / "model", make)
    assert again(**batch).logits.equal(model(**batch).logits)


def test_dense_models_go_through_as_they_are(batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = tiny_model("Llama")
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert not routed_layers(again) and again(**batch).logits.equal(model(**batch).logits)


def test_layers_put_in_by_hand_are_a_functions(batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = attach(tiny_model("Llama"), RoutedLayers(num_experts=2), [0])
    layer = build_stack(RoutedLayers(num_experts=2), 16, 4, 1)[0]
    model.model.layers[1].mlp = layer
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model", lambda index: copy.deepcopy(layer))
    assert again(**batch).logits.equal(model(**batch).logits)


def test_saving_while_recording_disturbs_nothing(batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = attach(tiny_model("Olmoe"))
    with record(model) as routes:
        model(**batch)
        save_pretrained(model, tmp_path / "model")
        model(**batch)
    assert all(len(parts) == 2 for parts in routes.values())


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


EXPERT = "model.layers.0.mlp.experts.3.gate_proj.weight"
WRONG_WEIGHTS: list[tuple[str, Callable[[dict[str, Tensor]], Any], str]] = [
    (
        "folder",
        lambda s: s.pop("model.layers.0.mlp.router.scorer.weight"),
        "missing tensors: model.layers.0.mlp.router.scorer.weight",
    ),
    ("folder", lambda s: s.update(other=torch.ones(1)), "unexpected tensors: other"),
    (
        "folder",
        lambda s: s.update({"model.norm.weight": torch.ones(3)}),
        "model.norm.weight is (3,); (16,) is right",
    ),
    ("plain", lambda s: s.pop("model.norm.weight"), "missing tensors: model.norm.weight"),
    ("plain", lambda s: s.update(other=torch.ones(1)), "unexpected tensors: other"),
    (
        "plain",
        lambda s: s.update({"model.norm.weight": torch.ones(3)}),
        "model.norm.weight is (3,); (16,) is right",
    ),
    ("plain", lambda s: s.pop(EXPERT), f"{EXPERT} is missing; those of other experts are (24, 16)"),
    (
        "plain",
        lambda s: s.update({EXPERT: torch.ones(23, 16)}),
        f"{EXPERT} is (23, 16); those of other experts are (24, 16)",
    ),
    (
        "plain",
        lambda s: [s.pop(name) for name in list(s) if ".experts.7." in name],
        "model.layers.0.mlp.experts.down_proj is (7, 16, 24); (8, 16, 24) is right",
    ),
]


@pytest.mark.parametrize(("which", "change", "message"), WRONG_WEIGHTS)
def test_wrong_weights_get_one_line(
    request: pytest.FixtureRequest,
    which: str,
    change: Callable[[dict[str, Tensor]], Any],
    message: str,
) -> None:
    folder = request.getfixturevalue(which)
    change_weights(folder, change)
    refused(folder, message)


@pytest.mark.parametrize("which", ["folder", "plain"])
def test_truncated_files_get_one_line(request: pytest.FixtureRequest, which: str) -> None:
    folder = request.getfixturevalue(which)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, "model.safetensors is not a whole safetensors file")
    weights.write_bytes(b"")
    refused(folder, "model.safetensors is not a whole safetensors file")


@pytest.mark.parametrize("which", ["folder", "plain"])
def test_pickles_are_never_loaded(request: pytest.FixtureRequest, which: str) -> None:
    folder = request.getfixturevalue(which)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin: a pickle can run code and is never loaded")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "has no weights; model.safetensors or model.safetensors.index.json is needed")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    model = attach(tiny_model("Llama"), RoutedLayers(num_experts=4))
    layer = model.model.layers[1].mlp
    layer.router = build_stack(RoutedLayers("soft", num_experts=4), 16, 4, 1)[0].router
    with pytest.raises(InputError, match="layer 1 was changed since it was attached"):
        save_pretrained(model, tmp_path / "model")
    model = attach(tiny_model("Olmoe"))
    for layer in routed_layers(model).values():
        layer.router.scorer.weight = nn.Parameter(torch.ones(6, 16))
    with pytest.raises(InputError, match=r"gate.weight is \(6, 16\); \(8, 16\) is right"):
        save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_losses_may_change(tmp_path: Path) -> None:
    for model in (attach(tiny_model("Llama"), RoutedLayers()), attach(tiny_model("Olmoe"))):
        for layer in routed_layers(model).values():
            layer.router.losses["load_balance"].weight = 0.0
            layer.router.losses["router_z"] = RouterZ()
        save_pretrained(model, tmp_path / "model")
        assert routed_layers(from_pretrained(tmp_path / "model"))


def test_saving_replaces_the_model_and_keeps_its_neighbours(
    batch: dict[str, Tensor], folder: Path
) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_text("")
    (folder / "notes").mkdir()
    (folder / "notes" / "config.json").write_text("mine")
    save_pretrained(model := attach(tiny_model("Olmoe")), folder, max_shard_size=20_000)
    assert from_pretrained(folder)(**batch).logits.equal(model(**batch).logits)
    assert not (folder / "polypath.json").exists()
    assert not (folder / "model.safetensors").exists()
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert (folder / "optimizer.pt").exists()
    assert (folder / "notes" / "config.json").read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_full_disk_loses_nothing(batch: dict[str, Tensor], folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match=r"File too large.*saved before is intact") as caught:
            save_pretrained(attach(tiny_model("Olmoe")), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
