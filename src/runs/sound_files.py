"""Files that appear whole, with a checksum next to them that detects damage by a kill, a full disk or a bad sector.

``last.ckpt`` has ``last.ckpt.sha256`` next to it, readable by ``sha256sum -c``. While a file is being replaced this
lists both the old and the new content, so after a kill at any point the file still passes its check.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

_BLOCK = 1 << 20


class CannotSave(OSError):
    """A file could not be written (a full disk, a quota); the old content is untouched."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: cannot be written ({reason})")
        self.path, self.reason = path, reason


class DamagedFile(RuntimeError):
    """A file does not match its checksum."""


def partial_path(path: Path) -> Path:
    """Where the new content of `path` is written until it is whole."""
    return path.with_name(path.name + ".partial")


def checksum_path(path: Path) -> Path:
    """The path of the checksum of `path`."""
    return path.with_name(path.name + ".sha256")


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Errors of writing as `CannotSave`, without the half-written file; it would only fill the disk further."""
    try:
        yield
    except CannotSave:
        raise
    except (OSError, SafetensorError) as error:
        partial_path(path).unlink(missing_ok=True)
        raise CannotSave(path, getattr(error, "strerror", None) or str(error)) from error


class _Hashing:
    """A file to write to that keeps the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_whole(path: Path, write: Callable[[Any], object], keep_as: Path | None = None) -> None:
    """Let `write` fill a file-like object, then put it in the place of `path`, with its checksum.

    File and folder are synced to disk first. keep_as: where to keep the old content, if any.

    Raises:
        CannotSave: naming file and reason; `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    with saving(path):
        with partial.open("wb") as file:
            hashing = _Hashing(file)
            try:
                write(hashing)
            except RuntimeError:
                # An interrupted torch writer reports its own state instead.
                if hashing.error is not None:
                    raise hashing.error from None
                raise
            file.flush()
            os.fsync(file.fileno())
        _keep(path, keep_as)
        put_in_place(partial, path, hashing.digest.hexdigest())


def put_in_place(partial: Path, path: Path, digest: str) -> None:
    """Rename a whole file to `path`; a kill in between leaves the old or the new one, each with its checksum."""
    _write_digests(path, [*digests(path), digest])
    partial.replace(path)
    sync_folder(path.parent)
    _write_digests(path, [digest])


def sync_file(path: Path) -> None:
    """Sync a file written by other code to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder's names to disk, if the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digests(path: Path) -> list[str]:
    """The digests `path` may have by its checksum file; none where there is no such file."""
    try:
        lines = checksum_path(path).read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    return [line.split()[0] for line in lines if line.strip()]


def damage(path: Path) -> str | None:
    """What is wrong with a file by its checksum, as text; None for a valid one, or one without a checksum."""
    known = digests(path)
    if not known:
        return None if not checksum_path(path).exists() else f"its checksum {checksum_path(path).name} is unreadable"
    try:
        found = file_digest(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if found in known:
        return None
    return f"its {path.stat().st_size:,} bytes have the SHA-256 {found[:12]}..., not {known[-1][:12]}... as written"


def require_sound(path: Path) -> None:
    """Raise DamagedFile unless `path` matches its checksum."""
    problem = damage(path)
    if problem is not None:
        raise DamagedFile(f"{path}: damaged: {problem}")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep(path: Path, keep_as: Path | None) -> None:
    """A second name for the content of `path`, which is about to be replaced."""
    if keep_as is None or not path.is_file():
        return
    known = digests(path)
    # The file matches one of two: an earlier replacement was interrupted.
    digest = known[0] if len(known) == 1 else file_digest(path)
    partial = partial_path(keep_as)
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:  # a file system without hard links; `path` is missing until the new file is in its place
        path.replace(partial)
    put_in_place(partial, keep_as, digest)
    partial.unlink(missing_ok=True)  # a rename between two names of one file leaves both


def _write_digests(path: Path, known: list[str]) -> None:
    file = checksum_path(path)
    partial = partial_path(file)
    with partial.open("w", encoding="ascii") as text:
        text.write("".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(known)))
        text.flush()
        os.fsync(text.fileno())
    partial.replace(file)
