"""Prompt records in JSONL files: UTF-8, one JSON object a line, blank lines allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from src.data.records import PromptDataError, parse_record
from src.values import PromptRecord


def read_jsonl(path: str | Path) -> list[PromptRecord]:
    """All records of a file, in its order.

    Raises PromptDataError, naming file, line, field and what was expected, for a file that is missing,
    holds no record or is not UTF-8, and for the first line that is no record. A byte-order mark is skipped.
    """
    path = Path(path)
    records = [parse_record(_decoded(line, where), where) for line, where in _lines(path)]
    if not records:
        raise PromptDataError(f"{path}: no prompt in this file; expected one JSON object a line")
    return records


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """The lines that are not blank, each with its ``file:line``.

    Bytes, split at line feeds only: a line that is not UTF-8 then fails with its own number, and the
    separators that `str.splitlines` knows beside the line feed may stand inside a prompt.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PromptDataError(f"{path}: no such file; set data.path to a JSONL file of prompts") from None
    except OSError as error:
        raise PromptDataError(f"{path}: cannot be read ({error.strerror}); set data.path to a JSONL file") from error
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield line, f"{path}:{number}"


def _decoded(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise PromptDataError(
            f"{where}: byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        problem = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        )
        raise PromptDataError(f"{where}: not a JSON object ({problem}); expected one object a line") from error
