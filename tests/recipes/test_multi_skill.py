import pytest
import torch

from polypath.recipes.multi_skill import (
    BATCH,
    DIM,
    LABELS,
    Network,
    Skills,
    converted,
    moved,
    right,
    variants,
)
from polypath.routing import routed_layers


def test_labels_are_the_rules_of_the_skills() -> None:
    skills = Skills.draw(0)
    generator = torch.Generator().manual_seed(1)
    x, y = skills.points(200, generator)
    best = 0
    for centre, rule in zip(skills.centres, skills.rules, strict=True):
        best += int(((x - centre) @ rule.T).argmax(1).eq(y).sum() > 0)
    assert x.shape == (200, DIM) and set(y.tolist()) == set(range(LABELS)) and best == 8
    one, other = next(skills.stream(3)), next(skills.stream(3))
    assert torch.equal(one[0], other[0]) and len(one[1]) == BATCH


@pytest.mark.parametrize("name", list(variants()))
def test_every_form_starts_as_the_network(name: str) -> None:
    torch.manual_seed(0)
    base = Network()
    network = converted(base, variants()[name])
    x, y = Skills.draw(0).points(300, torch.Generator().manual_seed(2))
    torch.testing.assert_close(network(x), base(x), rtol=1e-4, atol=1e-5)
    assert right(network, (x, y)) == right(base, (x, y))


def test_copies_are_one_at_the_start() -> None:
    torch.manual_seed(0)
    network = converted(Network(), variants()["4 copies in 2"])
    assert moved(network) == 0.0
    layer = next(iter(routed_layers(network).values()))
    with torch.no_grad():
        layer.experts.up_proj.add_(torch.randn_like(layer.experts.up_proj))
    assert moved(network) > 0.5
