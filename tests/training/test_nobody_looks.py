"""A closed terminal and a closed output: the run saves everything and stops, as after SIGTERM, and resumes."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from src.cli.closed_output import watched_output
from src.training.callbacks.graceful import GracefulStop, StopRequested
from tests.training.runs import command, environment, metrics_rows, overrides, summary, train, write_world
from tests.training.test_resume import assert_same_end, at_batch

SAVED = ("checkpoints/last.ckpt", "adapter/adapter_model.safetensors", "samples_after.png", "metrics.csv")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> Path:
    assert train(world, world / "undisturbed") == 0
    return world / "undisturbed"


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


class Closing(io.StringIO):
    """A stream whose reader goes away when it is told to."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = 0
        self.gone = number

    def close_now(self) -> None:
        self.number = self.gone

    def write(self, text: str) -> int:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


def assert_saved_and_resumed(run: Path, world: Path, number: int, undisturbed: Path) -> None:
    stopped = summary(run)
    assert (stopped["finished"], stopped["interrupted_by_signal"], stopped["steps"]) == (False, number, 3)
    assert all((run / name).is_file() for name in SAVED)
    assert train(world, run, resume="auto", checkpoint__every=100) == 0
    assert_same_end(run, undisturbed)


def test_a_closed_terminal(world: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = tmp_path / "run", signal.getsignal(signal.SIGHUP)
    with monkeypatch.context() as patch:
        at_batch(patch, 2, lambda: (hang_up(), hang_up()))  # a shell and the kernel each send one
        assert train(world, run, checkpoint__every=100) == 129
    assert signal.getsignal(signal.SIGHUP) == before
    assert_saved_and_resumed(run, world, signal.SIGHUP, undisturbed)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO], ids=["a pipe", "a terminal"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_output(
    number: int, stream: str, world: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, closing = tmp_path / "run", Closing(number)

    def close() -> None:
        closing.close_now()
        print("a line that nobody reads", file=getattr(sys, stream))

    with monkeypatch.context() as patch:
        patch.setattr(sys, stream, closing)
        at_batch(patch, 2, close)
        # What is printed after the run breaks as well: there is no descriptor here that could be sent elsewhere.
        with suppress(OSError):
            assert train(world, run, checkpoint__every=100) == 141
    assert_saved_and_resumed(run, world, signal.SIGPIPE, undisturbed)


def test_who_ignores_a_signal_goes_on_ignoring_it(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_batch(monkeypatch, 1, hang_up)
        assert train(world, tmp_path / "run", trainer__max_steps=2) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("signals", "at_once"),
    [
        (["SIGINT", "SIGINT"], True),
        (["SIGTERM", "SIGINT"], True),
        (["SIGHUP", "SIGHUP"], False),
        (["SIGTERM", "SIGHUP"], False),
        (["SIGHUP", "SIGTERM"], False),
        (["SIGHUP", "SIGTERM", "SIGTERM"], True),
    ],
)
def test_only_asking_twice_stops_at_once(signals: list[str], at_once: bool) -> None:
    """systemd sends SIGTERM and SIGHUP together, a shell several SIGHUPs: nobody is impatient there."""
    stop = GracefulStop()
    numbers = [getattr(signal, name) for name in signals]
    for number in numbers[:-1]:
        stop._received(number, None)
    if at_once:
        with pytest.raises(StopRequested):
            stop._received(numbers[-1], None)
    else:
        stop._received(numbers[-1], None)
    assert stop.code == 128 + numbers[0]


def test_other_errors_of_writing_are_no_closed_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", full := Closing(errno.ENOSPC))
    full.close_now()
    told: list[int] = []
    with watched_output(lambda: told.append(1)), pytest.raises(OSError, match="No space left"):
        print("x")
    assert told == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"trainer__progress_bar": "true"}], ids=["lines", "bar"])
def test_piped_to_head(arguments: dict[str, Any], world: Path, tmp_path: Path) -> None:
    """``python -m src.train ... 2>&1 | head -n 2``, for real."""
    run = tmp_path / "run"
    with (tmp_path / "errors").open("w") as errors:
        training = subprocess.Popen(
            command(world, run, trainer__max_steps=5000, evaluation__every=2, **arguments),
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        head = subprocess.run(["head", "-n", "2"], stdin=training.stdout, capture_output=True, check=True)
        assert training.stdout is not None
        training.stdout.close()
        assert training.wait(timeout=120) == 141
    assert head.stdout.startswith(b"run folder: ")
    told = (tmp_path / "errors").read_text()
    assert "Traceback" not in told
    assert "BrokenPipeError" not in told
    assert "The output is closed" in told
    # Closed before the first step, there is nothing but the folder to resume; later, everything is saved.
    if (run / "summary.json").is_file():
        found = summary(run)
        assert (found["interrupted_by_signal"], found["finished"]) == (signal.SIGPIPE, False)
        assert [int(row["step"]) for row in metrics_rows(run)] == list(range(found["steps"] + 1))
        assert all((run / name).is_file() for name in SAVED)


@pytest.mark.slow
def test_a_terminal_that_hangs_up(world: Path, tmp_path: Path) -> None:
    """On a terminal of its own, whose other end is closed in mid-run."""
    run, (ours, theirs) = tmp_path / "run", os.openpty()
    code = (
        "import os, sys, runpy; import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv = sys.argv[1:];"
    )
    code += "sys.exit(__import__('src.train', fromlist=['x']).main())"
    arguments = overrides(world, run, trainer__max_steps=5000, checkpoint__every=1000)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *arguments], cwd=tmp_path, env=environment(),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        os.set_blocking(ours, False)
        until = time.monotonic() + 120
        while not (run / "rollouts.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            try:
                os.read(ours, 65536)
            except BlockingIOError:
                time.sleep(0.1)
        os.close(ours)
        assert process.wait(timeout=120) in (129, 141), "by the signal, or by a write that came before it"
    finally:
        process.kill()
    assert summary(run)["steps"] > 0
    assert all((run / name).is_file() for name in SAVED)


@pytest.mark.parametrize("lines", [0, 1])
def test_other_commands_end_quietly(lines: int) -> None:
    """Any command's page piped into something that reads little of it."""
    code = "import sys; from src.cli import command as cli; from dataclasses import replace;"
    code += "from src.compare.command import COMMAND;"
    code += "sys.exit(cli.run(replace(COMMAND, task=lambda _: print('x\\n' * 100000) or 0), []))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    subprocess.run(["head", "-n", str(lines)], stdin=process.stdout, capture_output=True, check=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    told = process.stderr.read()
    assert (process.wait(60), told) == (141, b"")
