from pathlib import Path
from types import ModuleType

import pytest
import yaml

from polypath.errors import InputError
from polypath.recipes import moe_lm
from polypath.recipes.catalogue import catalogue
from polypath.recipes.launch import launch, preset
from polypath.training.run import Run


def stored(folder, **changes):
    """A run folder whose configuration has been changed by hand."""
    Run.create(folder, "moe-lm", moe_lm.Config(data=Path("text")))
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["config"] |= changes
    path.write_text(yaml.safe_dump(values))
    return folder


def test_a_resumed_run_has_the_configuration_it_was_started_with(tmp_path):
    folder = stored(tmp_path, balance=1, k=3)
    config = preset("moe-lm", moe_lm, None, folder)
    assert config == moe_lm.Config(data=Path("text"), balance=1.0, k=3)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"stepz": 1}, "unknown field 'stepz'; did you mean 'steps'?"),
        ({"steps": "many"}, "config.steps: expected a whole number, not 'many'"),
        ({"router": "top-kk"}, "config.router: expected one of 'top-k'"),
        ({"k": 99}, "k=99 of num_experts=8"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told_in_one_line(tmp_path, changes, line):
    with pytest.raises(InputError) as error:
        preset("moe-lm", moe_lm, None, stored(tmp_path, **changes))
    assert line in str(error.value)


def test_a_run_of_another_recipe_is_refused(tmp_path):
    with pytest.raises(InputError, match="a run of moe-lm, not of other"):
        preset("other", moe_lm, None, stored(tmp_path))


def test_presets_change_what_they_name():
    quick = preset("moe-lm", moe_lm, "quick", None)
    for name, value in moe_lm.PRESETS["quick"].items():
        assert getattr(quick, name) == value
    assert quick.hidden == moe_lm.Config().hidden


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_recipe_can_be_resumed_with_its_defaults(tmp_path, name):
    recipe = catalogue()[name].load()
    Run.create(tmp_path, name, recipe.Config())
    resumed = preset(name, recipe, None, tmp_path)
    Run.create(tmp_path / "again", name, resumed)
    first, second = (folder / "config.yaml" for folder in (tmp_path, tmp_path / "again"))
    assert first.read_text() == second.read_text()


def refusing(leaves=""):
    """A recipe that meets bad input, before or after it has left a file."""
    recipe = ModuleType("refusing")

    def run(config, run):
        if leaves:
            (run.folder / leaves).touch()
        raise InputError("line 3: one name, where two are needed")

    recipe.run = run
    return recipe


def test_bad_input_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="line 3"):
        launch("refusing", refusing(), {}, tmp_path / "run", None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", ["metrics.jsonl", "checkpoints/one.safetensors"])
def test_what_was_done_before_bad_input_stays(tmp_path, kept):
    with pytest.raises(InputError, match="line 3"):
        launch("refusing", refusing(kept), {}, tmp_path / "run", None)
    assert (tmp_path / "run" / kept).exists()
