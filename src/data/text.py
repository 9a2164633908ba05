"""Plain-text prompt files: UTF-8, one prompt per line, blank lines allowed; no metadata."""

from __future__ import annotations

from pathlib import Path

from src.data.lines import BadLines, decoded, filled_lines
from src.data.records import PromptDataError
from src.data.words import problem_of
from src.values import PromptRecord


def read_text(path: str | Path, bad: BadLines | None = None) -> list[PromptRecord]:
    """The prompts of a file, in order, without surrounding white space.

    Raises PromptDataError for a file that is missing, empty or cannot be read, and, naming file and line, for a
    line that is not UTF-8 or holds control characters, unless `bad` skips those.
    """
    path, bad = Path(path), bad or BadLines()
    read = bad.good(filled_lines(path), lambda line: record_of_line(*line))
    records = [record for record in read if record is not None]
    if not records:
        raise bad.all_bad(str(path), "one prompt per line")
    return records


def record_of_line(line: bytes, where: str) -> PromptRecord | None:
    """A line's prompt; None for one of wide spaces or separators only, which is blank to `str.strip` alone."""
    text = decoded(line, where).strip()
    if not text:
        return None
    if problem := problem_of(text):
        raise PromptDataError(f"{where}: {problem}; expected one prompt per line")
    return PromptRecord(text, place=where)
