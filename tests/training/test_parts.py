import multiprocessing
import os
import signal
import threading
import time

import pytest

from polypath.errors import InputError
from polypath.training.display import display
from polypath.training.interrupt import Interrupted
from polypath.training.parts import run_parts, workers_for

WAYS = [1, 2]


def run(parts, work, workers):
    with display(len(parts), 1) as shown:
        run_parts(parts, work, shown, workers)


def write(path, reporter):
    reporter.skip(0)
    reporter.advance(1.0, 10.0)
    path.write_text(str(os.getpid()))
    return "fine"


def refuse(path, reporter):
    raise InputError("no such thing")


def die(path, reporter):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_stop(path, reporter):
    path.write_text("began")
    while not reporter.stop():
        reporter.advance(1.0, 10.0)  # so often that there is always something to hear
        time.sleep(0.001)
    path.write_text("stopped")
    raise Interrupted


@pytest.mark.parametrize("workers", WAYS)
def test_every_part_is_done_once(tmp_path, workers):
    parts = {f"part {i}": tmp_path / str(i) for i in range(3)}
    run(parts, write, workers)
    processes = {path.read_text() for path in parts.values()}
    here = {str(os.getpid())}
    assert (processes == here) if workers == 1 else not (processes & here)


@pytest.mark.parametrize("workers", WAYS)
def test_an_error_of_a_part_arrives(tmp_path, workers):
    with pytest.raises(InputError, match="no such thing"):
        run({"a": tmp_path, "b": tmp_path}, refuse, workers)


def test_a_killed_process_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="a process of the run was killed"):
        run({"a": tmp_path, "b": tmp_path}, die, 2)


@pytest.mark.parametrize("workers", WAYS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_every_part_stop(tmp_path, workers, number):
    parts = {name: tmp_path / name for name in ("a", "b")}

    def interrupt():
        running = list(parts.values())[:workers]
        while not all(path.exists() for path in running):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        run(parts, wait_for_stop, workers)
    assert all(path.read_text() == "stopped" for path in list(parts.values())[:workers])


def test_a_ctrl_c_while_processes_start_lets_every_part_stop(tmp_path):
    """It reaches all of the group, those too that have not got as far as to be deaf to it."""

    others = set(multiprocessing.active_children())  # that another test has left

    def interrupt():
        while len(started := set(multiprocessing.active_children()) - others) < 2:
            time.sleep(0.001)
        for process in (*started, multiprocessing.current_process()):
            os.kill(process.pid, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        run({str(i): tmp_path / str(i) for i in range(2)}, wait_for_stop, 2)


def test_workers_follow_what_is_asked():
    assert workers_for({"a": 0, "b": 0, "c": 0}, asked=2, device="cpu") == 2
    assert workers_for({"a": 0}, asked=8, device="cpu") == 1
    assert workers_for({"a": 0, "b": 0}, asked=2, device="cuda:0") == 1
