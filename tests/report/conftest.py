"""An outcome with every kind of figure, made from a real routing of real Python source."""

import colorsys
import inspect
import re
import textwrap

import pytest
import torch

from polypath.language.kinds import python_kinds
from polypath.report import Claim, Outcome, Table, series
from polypath.report.figures import Curves, Paths, Walk
from polypath.report.routes import Text, explorer, flow, kind_maps, kind_table, load_map
from polypath.routing import Routing, TopKRouter

FAMILY = [
    Walk(["ada", "bea", "cyn"], ["parent of", "parent of"], 0.83),
    Walk(["ada", "ben", "bea", "cyn"], ["spouse of", "parent of", "parent of"], 0.31),
    Walk(["ada", "cyn"], ["knows"], -0.02),
    Walk(["ada", "bea", "cyn"], ["parent of", "knows"], 0.01),
]


def source(function) -> Text:
    """The source of a function as tokens: words with the space before them, signs, newlines."""
    text = inspect.getsource(function)
    kinds, matches = python_kinds(text), list(re.finditer(r" ?\w+|\n|\s+?|[^\w\s]", text))
    named = [kinds[match.end() - 1] for match in matches]
    return Text(function.__name__, [match.group() for match in matches], named)


def routed(texts: list[Text], experts: int, k: int, depth: int) -> dict[str, Routing]:
    """Each token through fresh routers, from a vector that is drawn for its text."""
    tokens = [token for text in texts for token in text.tokens]
    vectors = {token: torch.randn(16) for token in dict.fromkeys(tokens)}
    x = torch.stack([vectors[token] for token in tokens])
    with torch.no_grad():
        routers = [TopKRouter(16, experts, k) for _ in range(depth)]
        return {f"model.layers.{i}.mlp": router(x) for i, router in enumerate(routers)}


def make_outcome(experts: int = 8, k: int = 2, depth: int = 3, recipe: str = "moe-lm") -> Outcome:
    torch.manual_seed(0)
    texts = [source(colorsys.rgb_to_hls), source(textwrap.dedent)]
    kinds = [kind for text in texts for kind in text.kinds]
    layers = routed(texts, experts, k, depth)
    steps = list(range(0, 400, 10))
    runs = [[9 * 0.9**step + 0.1 * seed + 0.001 * step for step in steps] for seed in range(3)]
    lines = [series("routed", steps, runs), series("dense", steps, runs[:1])]
    return Outcome(
        recipe=recipe,
        commit="2685f17",
        machine={"processor": "two cores", "torch": "2.13.0"},
        seeds=[0, 1, 2],
        seconds=74.2,
        tables=[
            Table("Arms", ["arm", "loss", "steps"], [["routed", 1.25, 400], ["dense", None, 40]]),
            kind_table(layers, kinds),
        ],
        claims=[
            Claim("Routed is better (bits per byte)", "§3", "dense", -0.1, [-0.16, -0.04], 3, True),
            Claim("Dense is faster", "§4", "routed", 2.0, [1.0, 3.0], 3, False),
            Claim("Experts are even", "§5", "", 0.3, None, 1, "undecided"),
        ],
        figures=[
            Curves("Validation", "step", "bits per byte", lines, note="Bands over seeds."),
            load_map(layers),
            flow(layers),
            kind_maps(layers, kinds),
            Paths("Who is whose grandparent", FAMILY, note="By gradients of the score."),
            explorer(layers, texts),
        ],
    )


@pytest.fixture(scope="session")
def outcome() -> Outcome:
    return make_outcome()
