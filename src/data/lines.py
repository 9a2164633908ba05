"""The lines of a prompt file as bytes, and how bad ones are handled."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from time import monotonic
from typing import BinaryIO, TypeVar

from src.data.records import PromptDataError

ON_ERROR = ("raise", "skip")
KINDS = "a file of prompts: JSON lines (.jsonl), a JSON array of such objects, or plain text with a prompt a line"
LONGEST_LINE = 2**24
# For long files: lines between two looks at the clock, and seconds between two progress messages.
_LOOKED_AT, _SECONDS = 10_000, 2.0
T = TypeVar("T")
R = TypeVar("R")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def filled_lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """The lines of a file that are not blank, each with its ``file:line``, read one after the other.

    For a long file, progress goes to standard error. Raises PromptDataError if there is no such file, it
    cannot be read, or a line is longer than `LONGEST_LINE` bytes.
    """
    try:
        with path.open("rb") as file:
            yield from numbered_lines(file, str(path))
    except FileNotFoundError:
        raise PromptDataError(f"{path}: no such file; set data.path to {KINDS}") from None
    except OSError as error:
        raise PromptDataError(f"{path}: cannot be read ({error.strerror}); set data.path to {KINDS}") from error


def split_lines(content: bytes, name: str) -> Iterator[tuple[bytes, str]]:
    """`numbered_lines` of bytes in memory."""
    return numbered_lines(BytesIO(content), name)


def numbered_lines(file: BinaryIO, name: str) -> Iterator[tuple[bytes, str]]:
    """The lines of an open file, blank ones left out, each with ``name:line``; a byte-order mark is skipped.

    Bytes, split at line feeds only: a line that is not UTF-8 then fails with its own number, and the separators
    that `str.splitlines` knows beside the line feed may stand inside a prompt.
    """
    told = monotonic()
    for number in count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            break
        if len(line) > LONGEST_LINE:
            raise PromptDataError(f"{name}:{number}: is longer than {LONGEST_LINE} bytes; expected one prompt per line")
        line = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).removesuffix(b"\n")
        if number % _LOOKED_AT == 0 and monotonic() - told > _SECONDS:
            told = monotonic()
            _tell(f"{name}: {number:,} lines read ...")
        if line.strip():
            yield line, f"{name}:{number}"


def _tell(text: str) -> None:
    """A line on standard error, of the first of a machine's processes only."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def decoded(line: bytes, where: str) -> str:
    """A line as text; raises PromptDataError naming byte and column where it is not UTF-8."""
    if b"\0" in line or line.startswith((b"\xff\xfe", b"\xfe\xff")):
        what = "a NUL byte" if b"\0" in line else "UTF-16's mark"
        raise PromptDataError(f"{where}: holds {what}, as files in UTF-16 do; save the file as UTF-8")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise PromptDataError(
            f"{where}: byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from error


@contextmanager
def _no_collections() -> Iterator[None]:
    """Python's collector of cycles would look through a million new records again and again; there are none in them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class BadLines:
    """Handles lines that are not a prompt record: the first one raises, or all are skipped and counted.

    on_error: "raise" or "skip". `problems` holds the messages of those skipped, in order.
    """

    def __init__(self, on_error: str = "raise") -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"data.on_error={on_error}: expected one of {', '.join(ON_ERROR)}")
        self.skip = on_error == "skip"
        self.problems: list[str] = []

    def good(self, lines: Iterable[T], parse: Callable[[T], R]) -> list[R]:
        """``parse`` of every line for which it does not raise PromptDataError."""
        records = []
        with _no_collections():
            for line in lines:
                try:
                    records.append(parse(line))
                except PromptDataError as error:
                    if not self.skip:
                        raise
                    self.problems.append(str(error))
        return records

    def all_bad(self, source: str, expected: str) -> PromptDataError:
        """The error of a source without any record."""
        if not self.problems:
            return PromptDataError(f"{source}: contains no prompts; expected {expected}")
        return PromptDataError(f"{source}: all {len(self.problems)} lines are bad, the first: {self.problems[0]}")
