from typing import Any

import pytest
import torch

from hosts import tiny_model
from polypath.errors import InputError
from polypath.language.families import decoder_of
from polypath.routing import record
from polypath.surgery.calibration import Calibration, ChannelSums, calibrate
from polypath.surgery.convert import convert, dense_layers
from polypath.surgery.readme import (
    ReadMe,
    distillation_target,
    domain_masks,
    overlaps,
    permanent,
)
from polypath.surgery.supervision import distance

SIZES = torch.tensor(
    [
        [9, 8, 7, 1, 2, 3, 4, 0.5],
        [9, 8, 1, 7, 6, 2, 0.5, 3],
        [9, 1, 8, 2, 3, 7, 6, 0.5],
    ]
)


def test_the_worked_masks() -> None:
    masks = domain_masks(SIZES, 0.5)
    kept = [(row.nonzero()[:, 0] + 1).tolist() for row in masks]
    assert kept == [[1, 2, 3, 7], [1, 2, 4, 5], [1, 3, 6, 7]]
    assert (permanent(masks).nonzero()[:, 0] + 1).tolist() == [1]
    token = torch.tensor([[5, 4, 0.1, 3, 2, 0.2, 0.3, 0.4]])
    overlap = overlaps(token, masks)
    assert overlap.tolist() == [[2, 4, 1]]
    target = distillation_target([overlap])
    assert target[0].tolist() == pytest.approx([0.1142, 0.8438, 0.0420], abs=1e-4)
    router = torch.tensor([[0.1, 0.4, -0.2]]).softmax(-1)
    assert float(distance(router, target)) == pytest.approx(0.4668, abs=1e-4)
    exclusive = masks & ~permanent(masks)
    top = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0.0]])
    less = top @ exclusive.T.float()
    torch.testing.assert_close(less.softmax(-1), target, rtol=1e-4, atol=1e-5)


def test_signs_do_not_count_and_ties_are_even() -> None:
    masks = domain_masks(torch.ones(2, 6), 0.5)
    assert masks.sum(1).tolist() == [3, 3]  # the released code keeps one less
    strong = torch.tensor([[-9.0, 1, 0.5, 0.1, 0, 0]])
    assert overlaps(strong, domain_masks(strong.abs(), 0.5)).tolist() == [[3]]
    with pytest.raises(InputError, match="kept=0 of 6"):
        domain_masks(torch.ones(2, 6), 0)


def seen(model: Any, texts: dict) -> dict[str, Calibration]:
    return {name: calibrate(model, batches) for name, batches in texts.items()}


def test_fused_split_and_masked_layers_compute_the_same(ids: torch.Tensor, texts: dict) -> None:
    """Property 2."""
    tiny = tiny_model("Llama")
    known = seen(tiny, texts)
    decoder = decoder_of(tiny)
    dense = dense_layers(decoder)[0]
    rows = torch.randn(8, 16)
    chosen = torch.randint(2, (8, 1))
    found = []
    for layout in ("fused", "split"):
        model = type(tiny)(tiny.config).eval()
        model.load_state_dict(tiny.state_dict())
        method = ReadMe(known, width=16, heads=2, layout=layout)
        convert(model, method, layers=[0])
        layer: Any = decoder_of(model).routed()[0]
        layer.override = lambda own, x, context: _to(chosen)
        found.append(layer(rows))
    masks = method.masks[0]
    hidden = dense.hidden(rows) * masks[chosen[:, 0]]
    wanted = hidden @ dense.matrix("down").T
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], wanted, rtol=1e-4, atol=1e-5)


def _to(chosen: torch.Tensor) -> Any:
    from polypath.routing import Routing

    return Routing(torch.zeros(len(chosen), 2), chosen, torch.ones(chosen.shape))


def test_routes_come_from_token_ids_alone(ids: torch.Tensor, texts: dict) -> None:
    """Property 3."""
    model = tiny_model("Llama")
    convert(model, ReadMe(seen(model, texts), width=16, heads=2))

    def routes(tokens: torch.Tensor) -> list[torch.Tensor]:
        with record(model) as found, torch.no_grad():
            model(input_ids=tokens)
        return [own.experts[:, 0].view(tokens.shape) for own in found.joined().values()]

    first = routes(ids)
    assert all(torch.equal(first[0], other) for other in first[1:])
    later = ids.clone()
    later[:, 7:] = (later[:, 7:] + 1) % 61
    assert torch.equal(routes(later)[0][:, :7], first[0][:, :7])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    assert torch.equal(routes(ids)[0], first[0])


def test_the_language_loss_never_reaches_the_router(ids: torch.Tensor, texts: dict) -> None:
    """Property 4, the first half; the second is a property of `tune_router`."""
    model = tiny_model("Llama")
    convert(model, ReadMe(seen(model, texts), width=16, heads=2))
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if "router" in name:
            assert parameter.grad is None or not parameter.grad.any()


def test_the_table_of_tokens_starts_as_the_models(texts: dict) -> None:
    model = tiny_model("Llama")
    convert(model, ReadMe(seen(model, texts), width=8, heads=2))
    scorer = next(iter(decoder_of(model).routed().values())).router.scorer
    torch.testing.assert_close(
        scorer.embedding.weight, model.get_input_embeddings().weight[:, :8], rtol=0, atol=0
    )


def test_bad_domains_and_layouts_are_refused(texts: dict) -> None:
    model = tiny_model("Llama")
    known = seen(model, texts)
    with pytest.raises(InputError, match="1 domains"):
        ReadMe({"one": known["one"]})
    with pytest.raises(InputError, match="unknown layout"):
        ReadMe(known, layout="sparse")  # type: ignore[arg-type]
    other = {
        name: calibrate(tiny_model("Llama", intermediate_size=20), own)
        for name, own in texts.items()
    }
    with pytest.raises(InputError, match="domain one was not recorded at layer 0"):
        convert(model, ReadMe(other))
    same = dict.fromkeys(("a", "b"), known["one"])
    with pytest.raises(InputError, match="layout='fused' is right"):
        convert(model, ReadMe(same, layout="split"))
    even = Calibration(dense={i: ChannelSums(1, torch.ones(24).double()) for i in range(3)})
    assert ReadMe({"a": even, "b": even}).masks == {}
