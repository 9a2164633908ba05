"""A folder of results that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.config import UserError


def check_free(out: Path, overwrite: bool) -> None:
    """Raise UserError if something is at `out` and must not be replaced; to call before any work is done."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"out={out}: is not empty; choose another folder or add overwrite=true")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it takes the place of `out` when the block ends without an error.

    Raises:
        UserError: if no folder can be made there.
    """
    partial = out.with_name(out.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror}: {error.filename})") from error
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.is_dir():
        replaced = out.with_name(out.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
        partial.rename(out)
        shutil.rmtree(replaced)
    else:
        partial.rename(out)
