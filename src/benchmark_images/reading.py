"""The user's copy of a benchmark's prompts: files that are there, lines that are UTF-8, values that are JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from src.data.jsonl import json_value
from src.data.lines import BYTE_ORDER_MARK, decoded, split_lines
from src.data.records import PromptDataError
from src.data.words import problem_of


def existing(path: Path, expected: str) -> Path:
    """`path`, if something is there; raises PromptDataError that says what was `expected`."""
    if not path.exists():
        raise PromptDataError(f"prompts={path}: no such file or folder; expected {expected}")
    return path


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, without their ends, each with its ``file:line``."""
    for line, where in split_lines(_content(path), str(path)):
        text = decoded(line, where).rstrip("\r")
        if text.strip() and (problem := problem_of(text)):
            raise PromptDataError(f"{where}: {problem}; expected one prompt per line")
        yield text, where


def json_lines(path: Path) -> Iterator[tuple[object, str]]:
    """The JSON values of a .jsonl file, each with its ``file:line``."""
    for line, where in split_lines(_content(path), str(path)):
        yield json_value(line, where), where


def json_file(path: Path) -> object:
    """The JSON value that a file is."""
    return json_value(_content(path).removeprefix(BYTE_ORDER_MARK), str(path), "one JSON value")


def text_field(data: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be words."""
    value = data.get(name)
    if not isinstance(value, str) or (problem := problem_of(value)):
        told = f", which {problem}" if isinstance(value, str) else ""
        raise PromptDataError(f"{where}: field {name!r}: expected a non-empty string, got {value!r}{told}")
    return value


def path_part(text: str, where: str) -> str:
    """`text`, if it can be the name of one file or folder."""
    if not text or text in (".", "..") or any(char in text for char in "/\\\0") or len(text.encode()) > 200:
        raise PromptDataError(f"{where}: {text!r} cannot be the name of a folder")
    return text


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PromptDataError(f"{path}: cannot be read ({error.strerror})") from error
