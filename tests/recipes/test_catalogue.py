import subprocess
import sys

import pytest

from polypath.errors import InputError
from polypath.recipes.catalogue import catalogue, find


def test_every_recipe_has_what_the_command_line_needs():
    for name, entry in catalogue().items():
        recipe = entry.load()
        assert entry.domain
        assert entry.line.endswith(".")
        assert recipe.__name__.endswith(name.replace("-", "_"))
        assert "quick" in recipe.PRESETS
        for values in ({}, *recipe.PRESETS.values()):
            recipe.Config(**values)


def test_listing_recipes_imports_none_of_them():
    code = "import sys; from polypath.recipes.catalogue import catalogue; catalogue(); "
    code += "print('torch' in sys.modules, 'polypath.recipes.moe_lm' in sys.modules)"
    asked = [sys.executable, "-c", code]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]


def test_an_unknown_recipe_gets_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'moe-lm'"):
        find("moe_lm")
