"""Plain-text prompt files: UTF-8, one prompt a line, blank lines allowed; no metadata."""

from __future__ import annotations

from pathlib import Path

from src.data.lines import BadLines, decoded, filled_lines
from src.values import PromptRecord


def read_text(path: str | Path, bad: BadLines | None = None) -> list[PromptRecord]:
    """The prompts of a file, in its order, the white space around each taken off.

    Raises PromptDataError for a file that is missing, empty or cannot be read, and, naming file and line, for a
    line that is not UTF-8, unless `bad` skips those.
    """
    path, bad = Path(path), bad or BadLines()
    texts = bad.good(filled_lines(path), lambda line: decoded(*line).strip())
    # A line of wide spaces or separators only is blank to `str.strip` alone.
    records = [PromptRecord(text) for text in texts if text]
    if not records:
        raise bad.all_bad(str(path), "one prompt a line")
    return records
