"""One owner of a folder at a time: an advisory lock that the system releases with the process, even after kill -9.

The lock is on the file ``run.lock`` in the folder (flock(2)); its text names the owner, for messages. The file stays
after the owner is gone and marks a folder that this program made. Across machines the lock is as good as the file
system's: NFS passes it to its server unless it is mounted with ``nolock`` or ``local_lock``.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from src.config.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class _Held:
    """An open lock file."""

    def __init__(self, file: int) -> None:
        self.file = file
        _all_held.add(self)

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.file = -1


_all_held: weakref.WeakSet[_Held] = weakref.WeakSet()


def _let_go() -> None:
    """In a fork: what the parent owns is not this process's, and would stay locked as long as it lives."""
    for held in list(_all_held):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def owned(folder: Path, told: str) -> Iterator[None]:
    """Own the existing `folder` while the block runs.

    told: the setting that named it, for messages (``run.dir=x``). A file system without locks only gets a warning.

    Raises:
        UserError: if another process owns it, or the lock's file cannot be written.
    """
    held = _locked(folder, told)
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                fcntl.flock(held.file, fcntl.LOCK_UN)  # for a fork that has not come to `_let_go` yet, too
            held.close()


def owner(folder: Path) -> str | None:
    """The process that owns `folder` now, as text; None if there is none or it is unknown."""
    path = folder / LOCK
    if fcntl is None:
        return None
    try:
        file = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _words(path)
    except OSError:
        return None
    finally:
        os.close(file)
    return None


def taken(told: str, who: str) -> UserError:
    """The message of a folder that another process owns."""
    return UserError(
        f"{told}: another process is writing there ({who}); wait for it or stop it, or choose another folder"
    )


def _locked(folder: Path, told: str) -> _Held | None:
    if fcntl is None:
        return None
    path = folder / LOCK
    while True:
        try:
            held = _Held(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
        except OSError as error:
            raise UserError(f"{told}: cannot be written ({error.strerror}: {path}); choose another folder") from error
        try:
            fcntl.flock(held.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            raise taken(told, _words(path)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                held.close()
                raise UserError(f"{told}: cannot be locked ({error.strerror}: {path}); choose another folder") from None
            print(
                f"warning: {told}: its file system has no locks ({error.strerror}); make sure nothing else writes"
                " there",
                file=sys.stderr,
            )
        if _is_still(path, held.file):
            break
        held.close()  # its owner deleted it between our opening and locking it
    text = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat("T", "seconds"),
    }
    os.ftruncate(held.file, 0)
    os.pwrite(held.file, json.dumps(text).encode() + b"\n", 0)
    return held


def _is_still(path: Path, file: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False


def _words(path: Path) -> str:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"pid {int(told['pid'])} on {str(told['host'])[:100]}, since {str(told['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has {path} locked"
