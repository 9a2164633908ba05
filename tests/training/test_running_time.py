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

# A phase of some passes of 0.05 s, in the middle of which the process suspends itself: with its group or alone. It says
# how it goes on by `phases.progress` or stands still; in the second program it holds Python's lock.
WATCHED = """
import os, signal, sys, time
from src.runs import phases
from src.training.watchdog import Watchdog
seconds, passes, moving, suspends = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "moving", sys.argv[4]
with Watchdog(seconds, lambda: "kept"):
    with phases.phase("a long phase"):
        print("begun", flush=True)
        for number in range(passes):
            if number == 2 and suspends != "never":
                os.kill(0 if suspends == "group" else os.getpid(), signal.SIGSTOP)
            time.sleep(0.05)
            if moving:
                phases.progress()
print("done", flush=True)
"""
HOLDING = """
import ctypes, sys
from src.runs import phases
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


def go_on_after(process: subprocess.Popen[str], seconds: float, group: bool) -> None:
    """Wait until it has suspended itself; after `seconds`, what Ctrl-Z and fg do to a group, or kill -CONT to one."""
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_code == os.CLD_STOPPED
    time.sleep(seconds)
    os.kill(-process.pid if group else process.pid, signal.SIGCONT)


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


# A watchdog of s seconds counts at most LATE * s / 64 a tick, so it ends a run after 32 ticks or more without progress.
# However loaded the machine is, they are as many chances for the run's own thread, which needs one to four of them.
@pytest.mark.parametrize("group", [True, False], ids=["with its group", "alone"])
def test_suspended_for_longer_than_the_watchdogs_time_a_run_goes_on(group: bool) -> None:
    """5 s of suspension under a watchdog of 2 s, whose process beside it waits 3 s; 2.5 s of going on."""
    process = begun(WATCHED, 2.0, 50, "moving", "group" if group else "alone")
    go_on_after(process, 5.0, group)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "done\n", "")


def test_even_in_a_phase_that_was_under_way() -> None:
    """Before and after together it takes 0.2 s, less than the watchdog's 4 s; the suspension takes more."""
    process = begun(WATCHED, 4.0, 4, "still", "group")
    go_on_after(process, 5.0, group=True)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "done\n", "")


def test_suspended_or_not_a_run_that_stands_still_is_ended() -> None:
    process = begun(WATCHED, 2.0, 1200, "still", "group")
    go_on_after(process, 3.0, group=True)
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
    process = begun(WATCHED, 60.0, 1200, "moving", "never")
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
