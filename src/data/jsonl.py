"""Prompt records in JSONL files: UTF-8, one JSON object a line, blank lines allowed."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

from src.data.lines import BadLines, decoded, filled_lines
from src.data.records import PromptDataError, parse_record
from src.values import PromptRecord


def read_jsonl(path: str | Path, bad: BadLines | None = None) -> list[PromptRecord]:
    """All records of a file, in its order.

    Raises PromptDataError, naming file, line, field and what was expected, for a file that is missing, holds no
    record or cannot be read, and for the first line that is no record, unless `bad` skips those.
    """
    path, bad = Path(path), bad or BadLines()
    records = bad.good(filled_lines(path), lambda line: parse_record(json_value(*line), line[1]))
    if not records:
        raise bad.all_bad(str(path), "one JSON object a line")
    return records


def json_value(line: bytes, where: str) -> object:
    """The JSON value of a line; raises PromptDataError that starts with `where` for what is none."""
    text = decoded(line, where)
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (json.JSONDecodeError, RecursionError) as error:
        problem = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        )
        raise PromptDataError(f"{where}: not a JSON object ({problem}); expected one object a line") from error
    except ValueError as error:  # an integer of more digits than Python converts, or no finite number
        raise PromptDataError(f"{where}: not a JSON object ({error}); expected one object a line") from error


def _refused(name: str) -> object:
    """NaN and the infinities, which Python reads, are no JSON: nothing further on could send or write them."""
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits} is larger than a float can be")
    return number
