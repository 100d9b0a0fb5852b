import pytest
import torch
from torch.nn import functional as F

from hosts import tiny_model
from polypath import attach, record
from polypath.errors import InputError
from polypath.language.families import decoder_of
from polypath.routing import Routing
from polypath.surgery.calibration import RoutingSums, calibrate


def test_sums_are_those_of_all_routings_at_once(texts: dict) -> None:
    model = attach(tiny_model("Olmoe"))
    found = calibrate(model, texts["one"])
    with record(model) as routes, torch.no_grad():
        for batch in texts["one"]:
            model(input_ids=batch)
    for sums, routing in zip(found.routed.values(), routes.joined().values(), strict=True):
        assert sums.things == len(routing) == 36
        torch.testing.assert_close(sums.chosen, routing.load().long())
        torch.testing.assert_close(sums.usage().sum(), torch.tensor(1.0).double())
        torch.testing.assert_close(sums.weights, routing.importance().double())
        torch.testing.assert_close(sums.probabilities, routing.scores.double().softmax(-1).sum(0))
        cosines = F.cosine_similarity(
            routing.scores.double().T[:, None], routing.scores.double().T[None], dim=-1
        )
        torch.testing.assert_close(sums.similarity(), cosines)


def test_partners_count_each_thing_once_for_each_pair() -> None:
    experts = torch.tensor([[0, 2], [2, 1], [0, -1]])
    routing = Routing(torch.randn(3, 4), experts, torch.ones(3, 2))
    sums = RoutingSums.empty(4)
    sums.add(routing)
    assert sums.together.tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    # Dynamic-DINO, property 11: where all slots are filled a row sums to (k - 1) · choices.
    full = RoutingSums.empty(6)
    chosen = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)).topk(3).indices
    full.add(Routing(torch.randn(50, 6), chosen, torch.ones(50, 3)))
    torch.testing.assert_close(full.together, full.together.T)
    torch.testing.assert_close(full.together.sum(1), 2 * full.chosen)


def test_padding_does_not_count(texts: dict) -> None:
    model = attach(tiny_model("Qwen3Moe"))
    ids = texts["one"][0]
    padded = F.pad(ids, (0, 3))
    mask = F.pad(torch.ones_like(ids), (0, 3))
    with_padding = calibrate(model, [{"input_ids": padded, "attention_mask": mask}])
    without = calibrate(model, [ids])
    for index, sums in without.routed.items():
        torch.testing.assert_close(with_padding.routed[index].chosen, sums.chosen)
        torch.testing.assert_close(
            with_padding.routed[index].squares, sums.squares, rtol=1e-4, atol=1e-4
        )
    for index, channels in without.dense.items():
        torch.testing.assert_close(
            with_padding.dense[index].mean(), channels.mean(), rtol=1e-4, atol=1e-5
        )


def test_channels_are_the_mean_of_what_the_last_map_reads(texts: dict) -> None:
    model = tiny_model("Llama")
    found = calibrate(model, texts["one"])
    seen: list[torch.Tensor] = []
    hook = (
        decoder_of(model)
        .mlp(1)
        .down_proj.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].flatten(0, 1))
        )
    )
    with torch.no_grad():
        for batch in texts["one"]:
            model(input_ids=batch)
    hook.remove()
    torch.testing.assert_close(found.dense[1].mean(), torch.cat(seen).double().abs().mean(0))
    assert list(found.dense) == [0, 1, 2] and not found.routed


def test_memory_does_not_grow_with_the_text(texts: dict) -> None:
    model = attach(tiny_model("Olmoe"))
    few, many = calibrate(model, texts["one"][:1]), calibrate(model, texts["one"] * 5)
    sizes = [
        sum(
            getattr(own, name).numel()
            for own in found.routed.values()
            for name in vars(own)
            if name != "things"
        )
        for found in (few, many)
    ]
    assert sizes[0] == sizes[1]
    assert all(not layer.listeners for layer in decoder_of(model).routed().values())


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(InputError, match="no batches"):
        calibrate(tiny_model("Llama"), [])
