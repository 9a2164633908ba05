"""Two processes (gloo), one of which dies in mid-run: the other ends soon, says so, and the run can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from src.runs.resume import checkpoint_state
from src.training import stall_watch
from tests.training.runs import command, environment, metrics_rows, run_process, summary, write_world
from tests.training.test_kills import SETTINGS, assert_nothing_half_written

pytestmark = [pytest.mark.slow, pytest.mark.faults]

RANK_SECONDS = 5
BOUND = 20.0  # seconds, on a busy core; the watch itself takes one and RANK_SECONDS
TWO: dict[str, Any] = SETTINGS | {
    "trainer__devices": 2,
    "trainer__strategy": "ddp",
    "watchdog__rank_seconds": RANK_SECONDS,
    "evaluation__every": 1000,
    "checkpoint__every": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@contextmanager
def two_ranks(world: Path, run: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A long run that wrote its first checkpoint: the process of rank 0, and the id of rank 1's."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(world, run, **TWO | {"trainer__max_steps": 5000}),
            cwd=run.parent, env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 150
            while not (run / "checkpoints" / "last.ckpt").exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            (child,) = (pid for pid in children(process.pid) if not is_watch(pid))
            yield process, child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_watch(pid: int) -> bool:
    """Whether a child is not a rank, but the process that watches one."""
    return stall_watch.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be taken leave of does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float) -> float:
    """How long it takes the process to end."""
    start = time.monotonic()
    while alive(pid) and time.monotonic() - start < seconds:
        time.sleep(0.05)
    return time.monotonic() - start


def test_rank_one_dies(world: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with two_ranks(world, run, log) as (process, child):
        os.kill(child, signal.SIGKILL)
        record_property("seconds", seconds := gone(process.pid, 60))
        assert seconds < BOUND
        assert process.wait() == 1
    told = log.read_text()
    assert "error: local rank 1 ended with signal 9; rank 0 of 2 stops in: " in told, told
    assert f"the same command with resume={run} goes on from it" in told
    assert_nothing_half_written(run)
    steps = checkpoint_state(run / "checkpoints" / "last.ckpt")["global_step"]

    done = run_process(command(world, run, resume="auto", **TWO | {"trainer__max_steps": steps + 2}), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "error: " not in done.stderr, "an orderly end is no death"
    assert summary(run)["finished"] is True
    assert [row["step"] for row in metrics_rows(run)] == [str(step) for step in range(steps + 3)]


def test_rank_zero_dies(world: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The store dies with it, and a collective may, too: whatever is noticed first ends rank 1."""
    run, log = tmp_path / "run", tmp_path / "log"
    with two_ranks(world, run, log) as (process, child):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        record_property("seconds", seconds := gone(child, 60))
        assert seconds < BOUND
    told = log.read_text()
    assert "error: " in told, told
    assert "rank 0 does not answer any more" in told or "the connection to another rank is lost" in told, told
    assert_nothing_half_written(run)


def test_a_rank_that_stands_still_is_noticed(
    world: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """As on a machine that is gone: no process ends, no connection closes, nothing is heard any more."""
    run, log = tmp_path / "run", tmp_path / "log"
    with two_ranks(world, run, log) as (process, child):
        os.kill(child, signal.SIGSTOP)
        record_property("seconds", seconds := gone(process.pid, 90))
        assert seconds < BOUND + RANK_SECONDS
        assert process.wait() == 1
    told = log.read_text()
    assert f"error: rank 1 gave no sign of life for {RANK_SECONDS} s (watchdog.rank_seconds)" in told, told
    assert_nothing_half_written(run)


def test_a_job_that_is_suspended_as_a_whole_goes_on(world: Path, tmp_path: Path) -> None:
    """SLURM's suspend: both stand for longer than twice the time after which one would take the other for dead."""
    run, log = tmp_path / "run", tmp_path / "log"
    with two_ranks(world, run, log) as (process, child):
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(2.5 * RANK_SECONDS)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(3 * RANK_SECONDS)
        assert process.poll() is None, log.read_text()
        assert alive(child)
        assert "error: " not in log.read_text()
