import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.training.loop import Settings, Training, Validation
from polypath.training.run import Run

VOCABULARY = 17


class Data:
    """Random windows that depend on the step alone."""

    def batch(self, step):
        generator = torch.Generator().manual_seed(step)
        return torch.randint(VOCABULARY, (4, 9), generator=generator)


class Quiet:
    """A reporter that asks to stop after some steps."""

    def __init__(self, steps=10**9):
        self.left = steps

    def skip(self, steps):
        pass

    def advance(self, loss, tokens_per_second):
        self.left -= 1

    def stop(self):
        return self.left <= 0


def routed_model(seed=0, **routed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    losses = {"load_balance": 0.1, "router_z": 0.01}
    return attach(LlamaForCausalLM(config), RoutedLayers(num_experts=4, losses=losses, **routed))


def training(folder, model, **settings):
    run = Run.open(folder) if folder.exists() else Run.create(folder, "test", {})
    validation = Validation([Data().batch(1000), Data().batch(1001)], size=123)
    chosen = Settings(**{"steps": 6, "evaluate_every": 3, "warmup": 2} | settings)
    return Training(model, Data(), validation, chosen, run, "routed", 0)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_loss_falls(tmp_path):
    class OneBatch(Data):
        def batch(self, step):
            return super().batch(0)

    trained = training(tmp_path / "r", routed_model(), steps=30, learning_rate=1e-2)
    trained.data = OneBatch()
    trained.fit(Quiet())
    losses = [line["loss"] for line in trained.run.metrics() if line["split"] == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_micro_batches_train_the_same_model(tmp_path):
    whole, parts = routed_model(), routed_model()
    losses = [
        training(tmp_path / name, model, accumulate=count).advance()
        for name, model, count in (("a", whole, 1), ("b", parts, 4))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        # Adam divides by the gradient's size, which enlarges rounding of tiny gradients.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=lambda m, name=name: name + m)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_a_run_that_stops_and_resumes_is_bit_equal_to_an_unbroken_one(tmp_path, stop_at):
    from polypath.training.interrupt import Interrupted

    unbroken = training(tmp_path / "a", routed_model(scorer="noisy", bias_rate=0.01))
    unbroken.fit(Quiet())
    stopped = training(tmp_path / "b", routed_model(scorer="noisy", bias_rate=0.01))
    with pytest.raises(Interrupted):
        stopped.fit(Quiet(stop_at))
    resumed = training(tmp_path / "b", routed_model(seed=1, scorer="noisy", bias_rate=0.01))
    resumed.fit(Quiet())
    after = weights(resumed.model)
    for name, tensor in weights(unbroken.model).items():
        assert torch.equal(tensor, after[name]), name
    assert unbroken.run.metrics() == resumed.run.metrics()


def test_bits_per_byte_is_the_summed_loss_over_the_bytes(tmp_path):
    trained = training(tmp_path / "r", routed_model())
    facts = trained.evaluate()
    nats = 0.0
    with torch.no_grad():
        for batch in trained.validation.batches:
            logits = trained.model(input_ids=batch[:, :-1]).logits.double()
            for row, targets in zip(logits, batch[:, 1:], strict=True):
                for scores, target in zip(row, targets, strict=True):
                    nats -= float(scores.log_softmax(-1)[target])
    assert facts["bits_per_byte"] == pytest.approx(nats / 123 / math.log(2), rel=1e-5)
    assert facts["loss"] == pytest.approx(nats / 64, rel=1e-5)
    assert all(sum(shares) == pytest.approx(1) for shares in facts["load"].values())


def test_a_dense_model_has_no_routing_facts(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    facts = training(tmp_path / "r", LlamaForCausalLM(config)).evaluate()
    assert facts.keys() == {"loss", "bits_per_byte"}


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(tmp_path):
    model = routed_model()
    nn.init.constant_(model.model.embed_tokens.weight, math.inf)
    with pytest.raises(InputError, match="routed, seed 0: the loss is nan at step 0"):
        training(tmp_path / "r", model).advance()


def test_the_last_good_state_survives_a_failed_save(tmp_path, monkeypatch):
    trained = training(tmp_path / "r", routed_model())
    trained.save()
    before = trained.path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polypath.training.checkpoint.save_file", full)
    with pytest.raises(InputError, match="the disk is full"):
        trained.save()
    assert trained.path.read_bytes() == before
