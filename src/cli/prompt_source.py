"""Prompts a user gives: on the command line as they are, from a file, from standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.config.errors import UserError
from src.values import PromptRecord, as_records

# Their values never meet Hydra's grammar, in which commas, colons, quotes, brackets and ``=`` mean something.
PROMPT_KEYS = ("prompts", "prompt")
FILE_KEYS = ("prompts_file",)
STDIN = "-"


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where prompts come from: texts (``-`` stands for standard input) and files, in the order they were given."""

    texts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def take_out(arguments: Sequence[str]) -> tuple[PromptSource, list[str]]:
    """The prompts on a command line, verbatim, and the other arguments."""
    texts, files, others = [], [], []
    for argument in arguments:
        key, given, value = argument.partition("=")
        if given and key in PROMPT_KEYS:
            texts.append(value)
        elif given and key in FILE_KEYS:
            files.append(value)
        else:
            others.append(argument)
    return PromptSource(tuple(texts), tuple(files)), others


def read_prompts(source: PromptSource) -> tuple[PromptRecord, ...]:
    """All prompts as records; those of a file of JSON records bring their metadata.

    Raises:
        UserError: if there is none, one is empty, or a file is missing, empty or malformed (with its line).
    """
    records: list[PromptRecord] = []
    for text in source.texts:
        records += _standard_input() if text == STDIN else as_records([_filled(text)])
    for file in source.files:
        records += _standard_input() if file == STDIN else _file(Path(file).expanduser())
    if not records:
        raise UserError(
            'prompts: missing; give prompts="a red circle left of a blue square" (again for several),'
            " prompts_file=PATH (.txt or .jsonl), or prompts=- for standard input"
        )
    return tuple(records)


def _filled(text: str) -> str:
    from src.data.words import problem_of

    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError("prompts: a prompt is no UTF-8; set the terminal's encoding, or give prompts_file=PATH")
    if problem := problem_of(text):
        raise UserError(f"prompts: a prompt {problem}; expected some words")
    return text.strip()


def _file(path: Path) -> Sequence[PromptRecord]:
    if path.is_dir() or not path.exists():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"prompts_file={path}: {problem}; give a text file with a prompt a line, or JSON records")
    from src.data.splits import read_prompt_file

    try:
        return read_prompt_file(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _standard_input() -> Sequence[PromptRecord]:
    """A prompt a line, blank lines left out."""
    from src.data.lines import numbered_lines
    from src.data.records import PromptDataError
    from src.data.text import record_of_line

    try:
        read = [record_of_line(*line) for line in numbered_lines(sys.stdin.buffer, "standard input")]
    except PromptDataError as error:
        raise UserError(str(error)) from error
    records = [record for record in read if record is not None]
    if not records:
        raise UserError("prompts=-: no prompt on standard input; expected one a line")
    return records
