"""A folder of results that appears whole or not at all, and never replaces files of something else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from itertools import count
from pathlib import Path

from src.config.errors import UserError
from src.runs.folder_lock import LOCK, owned

# Left behind where a command was killed between two renames.
REPLACED = ".replaced"


def check_free(out: Path, overwrite: bool, own: Sequence[str]) -> None:
    """Raise UserError if `out` exists and must not be replaced; call this before any work is done.

    own: patterns of the names this command writes. A folder with anything else in it is not replaced, even with
    `overwrite`.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file; give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"out={out}: is not empty; choose another folder or add overwrite=true")
    foreign = sorted(one.name for one in out.iterdir() if not any(fnmatch(one.name, pattern) for pattern in own))
    if foreign:
        raise UserError(
            f"out={out}: holds {foreign[0]}, which this command did not write and overwrite=true would delete;"
            " choose another folder, or move it away"
        )


def new_folder(stem: str) -> Path:
    """A new empty folder ``<stem>-<time>``, with ``.2`` and so on where another command has the name already.

    Raises:
        UserError: if it cannot be made.
    """
    named = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        out = Path(named if number == 1 else f"{named}.{number}")
        try:
            out.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"out={out}: cannot be made ({error.strerror}); give another folder") from error
        return out
    raise AssertionError("count has no end")


@contextmanager
def written_whole(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder next to `out` to write into; it replaces `out` when the block ends without an error.

    Raises:
        UserError: if no folder can be made there, another process is writing the same one, or something that
            `overwrite` does not cover appeared in `out` meanwhile.
    """
    out = out.resolve()  # a link stays one
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror}: {error.filename})") from error
    with owned(partial, f"out={out}"):
        try:
            for one in partial.iterdir():  # of a command that was killed
                if one.name != LOCK:
                    shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
            yield partial
            (partial / LOCK).unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                out.rmdir()  # of `new_folder`; one with anything in it stays
            raise
        try:
            put_folder(partial, out, overwrite)
        except OSError as error:
            raise UserError(
                f"out={out}: cannot be moved into place ({error.strerror}); what was made stays in {partial}"
            ) from error


@contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """As `written_whole`, for a folder inside of one that this process owns; raises OSError."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    put_folder(partial, folder, overwrite=True)


def put_folder(partial: Path, out: Path, overwrite: bool) -> None:
    """Rename a whole folder to `out`; the old one is deleted afterwards, and only with `overwrite`. Raises OSError."""
    replaced = out.with_name(out.name + REPLACED)
    if overwrite and out.is_dir():
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    partial.rename(out)  # refused by the system where `out` holds anything
    if overwrite:
        shutil.rmtree(replaced, ignore_errors=True)
