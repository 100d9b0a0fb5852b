import torch

from hosts import tiny_model
from polypath import attach, experts_of
from polypath.surgery.freezing import Trainable, changed, fingerprints


def test_a_step_changes_one_expert_and_nothing_else() -> None:
    model = attach(tiny_model("Olmoe"))
    views = [view for view in experts_of(model) if (view.layer[-5], view.expert) == ("1", 3)]
    router = model.model.layers[1].mlp.router.scorer.weight
    parts = Trainable([router], views)
    assert parts.count() == router.numel() + sum(view.weight.numel() for view in views)
    before = fingerprints(model)
    stack = model.model.layers[1].mlp.experts.down_proj.detach().clone()
    ids = torch.randint(61, (2, 8))
    optimiser = torch.optim.AdamW(parts.parameters, lr=1e-2, weight_decay=0.5)
    with parts.alone(model):
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            parts.step(optimiser, clip=1.0)
    prefix = "model.layers.1.mlp"
    names = ["experts.down_proj", "experts.gate_up_proj", "router.scorer.weight"]
    assert changed(before, fingerprints(model)) == [f"{prefix}.{name}" for name in names]
    moved = (model.model.layers[1].mlp.experts.down_proj != stack).flatten(1).any(1)
    assert moved.tolist() == [expert == 3 for expert in range(8)]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_copy_learns_as_a_parameter_of_its_own_would() -> None:
    torch.manual_seed(0)
    model = attach(tiny_model("Mixtral"))
    view = experts_of(model)[0, 2, "down"]
    alone = torch.nn.Parameter(view.weight.detach().clone())
    parts = Trainable(views=[view])
    ours = torch.optim.AdamW(parts.parameters, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW([alone], lr=1e-2, weight_decay=0.1)
    for _ in range(4):
        with parts.alone(model):
            view.weight.sin().sum().backward()
            parts.step(ours)
        alone.sin().sum().backward()
        theirs.step(), theirs.zero_grad()
    torch.testing.assert_close(view.weight, alone)


def test_fingerprints_tell_shapes_dtypes_and_bits_apart() -> None:
    zero = {"a": torch.zeros(4)}

    class Holder(torch.nn.Module):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("a", tensor)

    base = fingerprints(Holder(zero["a"]))
    assert changed(base, fingerprints(Holder(torch.zeros(4)))) == []
    for other in (torch.zeros(2, 2), torch.zeros(4).half(), torch.tensor([0.0, 0, 0, -0.0])):
        assert changed(base, fingerprints(Holder(other))) == ["a"]
    assert changed(base, {}) == ["a"]
    assert fingerprints(Holder(torch.zeros(0, 3))) != fingerprints(Holder(torch.zeros(3, 0)))
