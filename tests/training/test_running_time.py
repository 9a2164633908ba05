"""Suspended time is not counted: by the watchdog, by the process beside it, by the watch over the ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from src.training import running_time, stall_watch
from src.training.running_time import LATE, RunningTime
from tests.conftest import ROOT

# A phase of some seconds under a watchdog; in the second program it holds Python's lock.
WATCHED = """
import sys, time
from src import phases
from src.training.watchdog import Watchdog
seconds, takes, moving = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "moving"
with Watchdog(seconds, lambda: "kept"):
    with phases.phase("a long phase"):
        print("begun", flush=True)
        until = time.monotonic() + takes
        while time.monotonic() < until:
            time.sleep(0.05)
            if moving:
                phases.progress()
print("done", flush=True)
"""
# Suspends itself, and everything of its group, in the middle of a phase of one second.
SUSPENDED_WITHIN = """
import os, signal, sys, time
from src import phases
from src.training.watchdog import Watchdog
with Watchdog(float(sys.argv[1]), lambda: "kept"):
    with phases.phase("a long phase"):
        print("begun", flush=True)
        time.sleep(0.5)  # some ticks of the watchdog, of which the first sees that the phase was entered
        os.kill(0, signal.SIGSTOP)
        for _ in range(10):
            time.sleep(0.05)
print("done", flush=True)
"""
HOLDING = """
import ctypes, sys
from src import phases
from src.training.watchdog import Watchdog
with Watchdog(1.0, lambda: "kept"), phases.phase("a long phase"):
    print("begun", flush=True)
    ctypes.PyDLL(None).sleep(60)
"""


def begun(program: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def suspend(process: subprocess.Popen[str], seconds: float, group: bool) -> None:
    """As Ctrl-Z does it to a whole group, or kill -STOP to the process alone."""
    target = -process.pid if group else process.pid
    os.kill(target, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(target, signal.SIGCONT)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_late_tick_counts_little(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(running_time, "time", clock)
    counted = RunningTime(interval=1.0)
    for passed in (1.0, 1.2, 3600.0, 1.0):
        clock.now += passed
        counted.tick()
    assert counted.seconds == pytest.approx(1.0 + 1.2 + LATE + 1.0)


@pytest.mark.parametrize("group", [True, False], ids=["with its group", "alone"])
def test_suspended_for_longer_than_the_watchdogs_time_a_run_goes_on(group: bool) -> None:
    """5 s of suspension under a watchdog of 2 s, whose process beside it waits 3 s."""
    process = begun(WATCHED, 2.0, 7.5, "moving")
    suspend(process, 5.0, group)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "done\n", "")


def test_even_in_a_phase_that_was_under_way() -> None:
    """It runs for one second of the watchdog's eight, however long it is suspended in between."""
    process = begun(SUSPENDED_WITHIN, 8.0)
    until = time.monotonic() + 30
    while not stall_watch.stopped(process.pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert stall_watch.stopped(process.pid)
    time.sleep(9.0)
    os.kill(-process.pid, signal.SIGCONT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "done\n", "")


def test_suspended_or_not_a_run_that_stands_still_is_ended() -> None:
    process = begun(WATCHED, 2.0, 60.0, "still")
    suspend(process, 3.0, group=True)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 124
    assert "s in: a long phase; the run is ended (watchdog.seconds=2; null: never); kept; the stacks:" in errors


def test_one_that_holds_pythons_lock_is_ended_from_beside() -> None:
    process = begun(HOLDING)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGABRT
    assert "error: Python itself gave no sign of life for" in errors
    assert 'File "<string>", line 7' in errors, "where it hangs"


def test_the_process_beside_ends_with_the_run() -> None:
    process = begun(WATCHED, 60.0, 60.0, "moving")
    (beside,) = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert stall_watch.__file__ in Path(f"/proc/{beside}/cmdline").read_text()
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while Path(f"/proc/{beside}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{beside}").exists()


def test_a_suspended_process_is_seen() -> None:
    process: Any = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not stall_watch.stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert stall_watch.stopped(process.pid)
    finally:
        process.kill()
        process.wait()
    assert not stall_watch.stopped(process.pid)
