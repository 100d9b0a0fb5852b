import json
from pathlib import Path
from typing import Any

import pytest

from hosts import change_json, refused
from polypath.language import from_pretrained
from polypath.routing import routed_layers


def layers_of(folder: Path, **changes: Any) -> dict[str, Any]:
    layers = json.loads((folder / "polypath.json").read_text())["layers"]
    return {index: layer | changes for index, layer in layers.items()}


def test_wrong_descriptions_get_one_line(folder: Path) -> None:
    path = folder / "polypath.json"
    whole = path.read_text()
    for changes, message in [
        ({"version": 3}, "polypath.json has version 3; this polypath reads version 2"),
        ({"stacks": [[0, 7]]}, "`stacks` are not lists of the indices of equal layers"),
        ({"stacks": 3}, "`stacks` are not lists of the indices of equal layers"),
        ({"layers": layers_of(folder, router="topk")}, "unknown router 'topk'; did you mean"),
        ({"layers": layers_of(folder, k=5)}, "k=5 of num_experts=4"),
        ({"layers": layers_of(folder, num_expert=5)}, "did you mean 'num_experts'?"),
        ({"layers": {"7": "adopted"}, "stacks": []}, "no layer 7; the model has layers 0 to 2"),
        (
            {"layers": {"1": "adopted"}, "stacks": []},
            "layer 1 of the model has no experts to adopt",
        ),
        ({"layers": {"1": 5}}, "layer 1 is 5; an object is right"),
        ({"layers": {"one": {}}}, "its `layers` are not an object from indices to layers"),
        ({"layers": 1}, "its `layers` are not an object from indices to layers"),
    ]:
        change_json(path, **changes)
        refused(folder, message)
        path.write_text(whole)
    change_json(path, layers=layers_of(folder, num_experts=5))
    refused(folder, "mlp.router.scorer.weight is (4, 16); (5, 16) is right")
    path.write_text(whole[:-20])
    refused(folder, "polypath.json: not JSON")


@pytest.mark.parametrize("which", ["folder", "plain"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "16"}, "config.json: transformers refuses it: StrictDataclass"),
        ({"model_type": "lama"}, "config.json: transformers refuses it: ValueError"),
        ({"dtype": "float99"}, "config.json: transformers refuses it: AttributeError"),
        ({"hidden_act": "sillu"}, "transformers refuses it: KeyError: 'sillu'"),
        ({"architectures": ["Lama"]}, " model 'Lama'"),
        ({"architectures": []}, " model 'none'"),
        ({"architectures": ["BertModel"]}, " model 'BertModel'"),
        ({"num_hidden_layers": 4}, "missing tensors: model.layers.3.input_layernorm.weight"),
    ],
)
def test_wrong_configurations_get_one_line(
    request: pytest.FixtureRequest, which: str, changes: dict[str, Any], message: str
) -> None:
    folder = request.getfixturevalue(which)
    change_json(folder / "config.json", **changes)
    refused(folder, message)


def test_broken_and_missing_configurations_get_one_line(folder: Path, tmp_path: Path) -> None:
    path = folder / "config.json"
    path.write_text("[]")
    refused(folder, "config.json: it does not name the model's `architectures`")
    path.write_text("{")
    refused(folder, "config.json: not JSON")
    path.unlink()
    refused(folder, "is not a checkpoint: it has no config.json")
    refused(tmp_path / "elsewhere", "no folder")
    folder.rename(folder.with_name(".model.old"))
    refused(folder, "an interrupted save left what it held in")


@pytest.mark.parametrize("model_type", ["llama", "lama"])
def test_code_in_a_checkpoint_is_never_run(folder: Path, model_type: str) -> None:
    (folder / "code.py").write_text("from pathlib import Path\nPath(__file__ + '.ran').touch()\n")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_json(folder / "config.json", model_type=model_type, auto_map=auto)
    if model_type == "lama":
        refused(folder, "contains custom code")
    else:
        assert routed_layers(from_pretrained(folder))
    assert not list(folder.glob("*.ran"))
