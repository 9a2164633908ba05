"""One owner of a folder: who is refused, by whose name, and that the lock is gone with its process however it ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from src.config.errors import UserError
from src.runs import folder_lock
from src.runs.folder_lock import LOCK, owned, owner
from tests.conftest import ROOT

HOLD = """
import os, sys, time
from pathlib import Path
from src.runs.folder_lock import owned
with owned(Path(sys.argv[1]), "run.dir=x"):
    print("mine", flush=True)
    time.sleep(60)
"""

FORK = """
    there, here = os.pipe()
    if not (child := os.fork()):
        os.close(1)
        os.write(here, b".")
        time.sleep(60)
    os.read(there, 1)
    print("mine", child, sep="\\n", flush=True)
"""


@contextmanager
def another_owner(folder: Path, program: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """A process that owns `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_owner_is_named_and_kill_9_frees_the_folder(tmp_path: Path) -> None:
    with another_owner(tmp_path) as process:
        assert (owner(tmp_path) or "").startswith(f"pid {process.pid} on {socket.gethostname()}, since 20")
        with pytest.raises(UserError, match=rf"run\.dir=y: another process .*pid {process.pid} on .*wait for it"):
            owned(tmp_path, "run.dir=y").__enter__()
        process.kill()
        process.wait()
        assert owner(tmp_path) is None
        with owned(tmp_path, "run.dir=y"):
            assert (owner(tmp_path) or "").startswith(f"pid {os.getpid()} on ")
    assert (tmp_path / LOCK).is_file(), "it marks a folder of ours"


def test_nor_may_one_process_have_it_twice(tmp_path: Path) -> None:
    """A launcher of sweeps may run its jobs in threads."""
    with owned(tmp_path, "a"):
        with pytest.raises(UserError, match=rf"b: another process .*pid {os.getpid()} "), owned(tmp_path, "b"):
            pass
        assert owner(tmp_path) is not None, "asking does not take it away"
    with owned(tmp_path, "c"):
        pass


def test_a_fork_does_not_go_on_owning_it(tmp_path: Path) -> None:
    """A worker that outlives its parent, which was killed, must not keep the run from being resumed."""
    forking = HOLD.replace('print("mine", flush=True)', FORK)
    with another_owner(tmp_path, forking) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)
            assert owner(tmp_path) is None
        finally:
            os.kill(child, signal.SIGKILL)


def test_what_the_owner_wrote_is_not_trusted(tmp_path: Path) -> None:
    with owned(tmp_path, "a"):
        for text in (b"", b"\xff\xfe\x00", b"[1, 2]", b'{"pid": "none"}'):
            (tmp_path / LOCK).write_bytes(text)
            assert LOCK in (owner(tmp_path) or "")


def test_a_lock_that_was_deleted_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner takes an empty folder's lock away: who opened the old file owns nothing by it."""
    opened, real = [], os.open

    def slow_open(path: Any, *flags: Any) -> int:
        file = real(path, *flags)
        if not opened:
            Path(path).unlink()
        opened.append(path)
        return file

    monkeypatch.setattr(folder_lock.os, "open", slow_open)
    with owned(tmp_path, "a"):
        monkeypatch.undo()
        assert len(opened) == 2
        assert owner(tmp_path) is not None


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with owned(tmp_path, "run.dir=x"):
        assert "warning: run.dir=x: its file system has no locks (No locks available)" in capsys.readouterr().err
    assert owner(tmp_path) is None


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=r"run\.dir=x: cannot be written \(.*run\.lock\)"), owned(tmp_path, "run.dir=x"):
        pass
