"""The parts of a run (an arm and a seed each), side by side in processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty
from typing import Any, Protocol, TypeVar

import torch

from polypath.errors import InputError
from polypath.training.display import Display
from polypath.training.interrupt import Interrupted, deferred, held_back

Part = TypeVar("Part")


class Reporter(Protocol):
    """What a part tells while it runs, and where it hears that it should stop."""

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None: ...

    def stop(self) -> bool: ...


@dataclass(frozen=True)
class _Reporter:
    name: str
    send: Callable[[str, str, tuple[Any, ...]], None]
    stop: Callable[[], bool]

    def skip(self, steps: int) -> None:
        self.send("skip", self.name, (steps,))

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.send("advance", self.name, (loss, tokens_per_second))


def run_parts(
    parts: dict[str, Part],
    work: Callable[[Part, Reporter], str],
    display: Display,
    workers: int,
) -> None:
    """Do `work` on every part and show its one-line result; in processes of one thread each.

    workers: how many at once; 1 stays in this process with all its threads. SIGINT and SIGTERM let
    every part save and stop: then raises Interrupted, as `work` does. `work` and its parts are sent
    to the processes, so they must be importable.
    """
    with deferred() as asked:
        if workers == 1:
            for name, part in parts.items():
                display.done(name, work(part, _Reporter(name, display.show, asked)))
        else:
            _side_by_side(parts, work, display, workers, asked)


def _side_by_side(
    parts: dict[str, Part],
    work: Callable[[Part, Reporter], str],
    display: Display,
    workers: int,
    asked: Callable[[], bool],
) -> None:
    spawn = multiprocessing.get_context("spawn")
    tasks, news, stop = spawn.Queue(), spawn.Queue(), spawn.Event()
    for task in (*parts.items(), *[None] * workers):
        tasks.put(task)
    arguments = (work, tasks, news, stop, os.getpid())
    servers = [spawn.Process(target=_serve, args=arguments, daemon=True) for _ in range(workers)]
    with held_back():  # a Ctrl-C reaches the whole group, and would end those not yet deaf to it
        for server in servers:
            server.start()
    try:
        done = 0
        while done < len(parts):
            if asked():
                stop.set()
            done += _hear(news, display)
            _check(servers, stop.is_set())
    finally:
        stop.set()
        for server in servers:
            server.join()


def _hear(news: Any, display: Display) -> int:
    """Pass on what the processes say in a tenth of a second; how many parts are done."""
    done = 0
    until = time.monotonic() + 0.1
    while (left := until - time.monotonic()) > 0:
        try:
            what, name, values = news.get(timeout=left)
        except Empty:
            break
        if what == "failed":
            raise values[0]
        if what == "done":
            display.done(name, *values)
            done += 1
        else:
            display.show(what, name, values)
    return done


def _check(servers: Sequence[Any], stopping: bool) -> None:
    """Raise when a process was killed, or when all have stopped as they were asked to."""
    if any(server.exitcode for server in servers):
        raise InputError(
            "a process of the run was killed, perhaps for want of memory; "
            "resume the run with a smaller model or with --workers 1"
        )
    if stopping and all(server.exitcode == 0 for server in servers):
        raise Interrupted


def _serve(work: Callable, tasks: Any, news: Any, stop: Any, parent: int) -> None:
    """One process: part after part until none is left; deaf to Ctrl-C, gone with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    for name, part in iter(tasks.get, None):
        if stop.is_set():
            return
        reporter = _Reporter(name, lambda *said: news.put(said), stop.is_set)
        try:
            news.put(("done", name, (work(part, reporter),)))
        except Interrupted:
            return
        except Exception as error:
            error.add_note(traceback.format_exc())
            news.put(("failed", name, (error,)))
            return


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def workers_for(parts: Sequence[Any] | dict[str, Any], asked: int, device: str) -> int:
    """How many parts run at once: as asked, or one per core on the CPU, when 0 is asked."""
    if torch.distributed.is_initialized() or device != "cpu":
        return 1
    return max(1, min(asked or len(os.sched_getaffinity(0)), len(parts)))
