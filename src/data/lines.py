"""The lines of a prompt file as bytes, and what becomes of bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from src.data.records import PromptDataError

ON_ERROR = ("raise", "skip")
KINDS = "a file of prompts: .jsonl, or .txt with a prompt a line"
T = TypeVar("T")
R = TypeVar("R")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def filled_lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """The lines of a file that are not blank, each with its ``file:line``.

    Raises PromptDataError if there is no such file or it cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PromptDataError(f"{path}: no such file; set data.path to {KINDS}") from None
    except OSError as error:
        raise PromptDataError(f"{path}: cannot be read ({error.strerror}); set data.path to {KINDS}") from error
    yield from split_lines(content, str(path))


def split_lines(content: bytes, name: str) -> Iterator[tuple[bytes, str]]:
    """`content` by line feeds, blank lines left out, each with ``name:line``; a byte-order mark is skipped.

    Bytes, split at line feeds only: a line that is not UTF-8 then fails with its own number, and the separators
    that `str.splitlines` knows beside the line feed may stand inside a prompt.
    """
    for number, line in enumerate(content.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), start=1):
        if line.strip():
            yield line, f"{name}:{number}"


def decoded(line: bytes, where: str) -> str:
    """A line as text; raises PromptDataError naming byte and column where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise PromptDataError(
            f"{where}: byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from error


class BadLines:
    """What happens to lines that are no prompt record: the first one raises, or all are skipped and counted.

    on_error: "raise" or "skip". `problems` holds the messages of those skipped, in order.
    """

    def __init__(self, on_error: str = "raise") -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"data.on_error={on_error}: expected one of {', '.join(ON_ERROR)}")
        self.skip = on_error == "skip"
        self.problems: list[str] = []

    def good(self, lines: Iterable[T], parse: Callable[[T], R]) -> list[R]:
        """``parse`` of every line it does not refuse by PromptDataError."""
        records = []
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
            return PromptDataError(f"{source}: no prompt in it; expected {expected}")
        return PromptDataError(f"{source}: all {len(self.problems)} lines are bad, the first: {self.problems[0]}")
