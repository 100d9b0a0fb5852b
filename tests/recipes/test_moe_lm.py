import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from polypath.language import from_pretrained
from polypath.recipes.moe_lm import Config, arms
from polypath.recipes.text import build
from polypath.routing import routed_layers
from polypath.training.checkpoint import load_state

TINY = ["--steps", "16", "--evaluate-every", "4", "--seeds", "1", "--dim", "16", "--layers", "2"]
TINY += ["--limit-mb", "0.3", "--validation-windows", "8", "--context", "64", "--tokenizer", "byte"]


# Long enough that a signal finds it at work, however fast the machine.
LONGER = [*TINY, "--steps", "96", "--evaluate-every", "8"]


def polypath(*arguments):
    return [sys.executable, "-m", "polypath", "run", *map(str, arguments)]


def finish(*arguments, **options):
    done = subprocess.run(
        polypath(*arguments), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(folder):
    """What a run measured, without what depends on the clock."""
    outcome = json.loads((folder / "outcome.json").read_text())
    bits = {row[0]: row[3] for row in outcome["tables"][0]["rows"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: (line["arm"], line["seed"], line["step"], line["split"]))
    return bits, lines, outcome["figures"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    finish("moe-lm", *TINY, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "longer"
    finish("moe-lm", *LONGER, "--out", folder)
    return folder


def test_arms_have_equal_active_and_equal_total_parameters():
    config = Config()

    def feed_forward(arm):
        with torch.device("meta"):
            model = build(config, arms(config)[arm], 256)
        return {
            name: p.numel() for name, p in model.named_parameters() if ".mlp." in name
        }, routed_layers(model)

    routed, layers = feed_forward("routed")
    experts = sum(size for name, size in routed.items() if "experts" in name)
    assert len(layers) == config.layers
    assert sum(feed_forward("dense-total")[0].values()) == experts
    assert sum(feed_forward("dense-active")[0].values()) == experts * config.k // config.experts


@pytest.mark.slow
def test_a_run_leaves_everything_that_was_promised(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "routes.safetensors", "outcome.json"} <= names
    assert {"report.html", "checkpoints"} <= names
    outcome = json.loads((unbroken / "outcome.json").read_text())
    assert {"recipe", "commit", "machine", "seeds", "tables", "claims"} <= outcome.keys()
    for claim in outcome["claims"]:
        assert claim.keys() == {
            "claim", "source", "baseline", "measured", "interval", "seeds", "held",
        }  # fmt: skip
        assert claim["held"] == "undecided"  # one seed decides nothing


@pytest.mark.slow
def test_the_routed_model_of_a_run_can_be_loaded(unbroken):
    model = from_pretrained(unbroken / "model")
    assert len(routed_layers(model)) == 2
    state, _ = load_state(unbroken / "checkpoints" / "routed-seed0.safetensors")
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            assert torch.equal(tensor, state[f"model.{name}"]), name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_resumes_to_the_same_numbers(longer, tmp_path, number):
    folder = tmp_path / "broken"
    running = subprocess.Popen(
        polypath("moe-lm", *LONGER, "--out", folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as Ctrl-C does
    else:
        running.send_signal(number)
    said = running.communicate()[1]
    assert not (folder / "outcome.json").exists()
    if number != signal.SIGKILL:
        assert running.returncode == 130
        assert f"polypath run --resume {folder}" in " ".join(said.split())
    finish("--resume", folder)
    assert numbers(folder) == numbers(longer)


@pytest.mark.slow
def test_a_run_keeps_its_configuration_when_resumed(unbroken):
    again = polypath("--resume", unbroken, "--steps", "99")
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "keeps the configuration it has" in done.stderr


@pytest.mark.slow
def test_text_of_the_users_own(tmp_path, shakespeare):
    finish("moe-lm", *TINY, "--data", shakespeare, "--out", tmp_path / "run")
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    kinds = next(f for f in outcome["figures"] if "chosen for" in f["title"])
    assert "capitalised" in json.dumps(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--shard-experts", "--accumulate", "2"]])
def test_two_ranks_train_as_one_process_does(unbroken, tmp_path, options):
    folder = tmp_path / "ranks"
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = [sys.executable, *ranks, "-m", "polypath", "run", "moe-lm", *TINY, *options]
    done = subprocess.run(
        [*asked, "--device", "cpu", "--out", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone, together = (
        {(m["arm"], m["step"], m["split"]): m["loss"] for m in numbers(run)[1]}
        for run in (unbroken, folder)
    )
    assert alone.keys() == together.keys()
    for place, loss in alone.items():
        assert together[place] == pytest.approx(loss, rel=2e-4), place
