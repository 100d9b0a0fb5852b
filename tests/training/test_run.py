import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from polypath.errors import InputError
from polypath.training.run import VERSION, Run, new_folder


@dataclass(frozen=True)
class Config:
    data: Path | None = Path("text")
    steps: int = 3


def test_what_is_created_can_be_opened(tmp_path):
    made = Run.create(tmp_path / "r", "moe-lm", Config())
    opened = Run.open(tmp_path / "r")
    assert opened == made
    assert opened.config == {"data": "text", "steps": 3}


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        Run.create(tmp_path, "moe-lm", Config())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_of_another_version_is_refused(tmp_path):
    Run.create(tmp_path, "moe-lm", Config())
    path = tmp_path / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(stored | {"version": VERSION + 1}))
    with pytest.raises(InputError, match=f"version {VERSION + 1} .* version {VERSION}"):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["", "recipe: [", "a: 1", "\x00"])
def test_a_damaged_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml is damaged"):
        Run.open(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a run folder: it has no config\.yaml"):
        Run.open(tmp_path)


def test_forgetting_drops_later_lines_of_one_part_and_a_cut_line(tmp_path):
    run = Run.create(tmp_path, "moe-lm", Config())
    for arm in ("a", "b"):
        for step in (1, 2, 3):
            run.log(arm=arm, seed=0, step=step)
    with run.metrics_path.open("a") as file:
        file.write('{"arm": "a", "se')
    run.forget_after("a", 0, 1)
    run.log(arm="a", seed=0, step=2)
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [(line["arm"], line["step"]) for line in lines] == [
        ("a", 1), ("b", 1), ("b", 2), ("b", 3), ("a", 2),
    ]  # fmt: skip


def test_lines_written_at_once_are_all_kept(tmp_path):
    run = Run.create(tmp_path, "moe-lm", Config())

    def work(seed):
        for step in range(20):
            run.log(arm="a", seed=seed, step=step)
        run.forget_after("a", seed, 9)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    places = sorted((line["seed"], line["step"]) for line in run.metrics())
    assert places == [(seed, step) for seed in range(4) for step in range(10)]


def test_metrics_that_cannot_be_written_are_said_in_one_line(tmp_path):
    run = Run.create(tmp_path, "moe-lm", Config())
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(InputError, match="the disk is full"):
        run.log(arm="a", seed=0, step=1)


def test_new_folders_count_on(tmp_path):
    assert new_folder("x", tmp_path).name == "x-1"
    (tmp_path / "x-1").mkdir()
    assert new_folder("x", tmp_path).name == "x-2"
