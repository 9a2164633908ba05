"""Prompt records in JSON: a file with one object per line (blank lines allowed), or one array of objects; UTF-8."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from src.data.lines import BYTE_ORDER_MARK, BadLines, decoded, filled_lines
from src.data.records import PromptDataError, parse_record
from src.values import PromptRecord

_BLANKS = re.compile(r"[ \t\n\r]*")


def read_jsonl(path: str | Path, bad: BadLines | None = None) -> list[PromptRecord]:
    """All records of a file, in its order.

    Raises PromptDataError, naming file, line, field and what was expected, for a file that is missing, has no records
    or cannot be read, and for the first line that is not a record, unless `bad` skips those.
    """
    path, bad = Path(path), bad or BadLines()
    records = bad.good(filled_lines(path), lambda line: parse_record(json_value(*line), line[1]))
    if not records:
        raise bad.all_bad(str(path), "one JSON object per line")
    return records


def read_array(path: str | Path, bad: BadLines | None = None) -> list[PromptRecord]:
    """All records of a file that is one JSON array, in its order; an element is an object, or just a prompt.

    Raises PromptDataError as `read_jsonl` does; invalid JSON raises even if `bad` skips wrong elements.
    """
    path, bad = Path(path), bad or BadLines()

    def parse(element: tuple[object, str]) -> PromptRecord:
        value, where = element
        return parse_record({"prompt": value} if isinstance(value, str) else value, where)

    records = bad.good(array_elements(path), parse)
    if not records:
        raise bad.all_bad(str(path), "an array of objects with a 'prompt'")
    return records


def array_elements(path: Path) -> Iterator[tuple[object, str]]:
    """The elements of a file's JSON array, each with the ``file:line`` it begins at."""
    try:
        text = decoded(path.read_bytes().removeprefix(BYTE_ORDER_MARK), str(path))
    except OSError as error:
        raise PromptDataError(f"{path}: cannot be read ({error.strerror})") from error
    counted, line = 0, 1

    def where(place: int) -> str:
        nonlocal counted, line
        line += text.count("\n", counted, place)
        counted = place
        return f"{path}:{line}"

    def mark(place: int, expected: str) -> int:
        """The position of the next mark, one of `expected`."""
        place = _filled(text, place)
        if text[place : place + 1] not in tuple(expected):
            raise PromptDataError(f"{where(place)}: not a JSON array; expected {' or '.join(expected)} here")
        return place

    place = _filled(text, mark(0, "[") + 1)
    more = text[place : place + 1] != "]"
    while more:
        begins = where(place)
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            told = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise PromptDataError(f"{begins}: not a JSON array of prompts ({told})") from error
        yield value, begins
        place = mark(end, ",]")
        more = text[place] == ","
        place = _filled(text, place + 1) if more else place
    if _filled(text, place + 1) != len(text):
        raise PromptDataError(f"{where(place)}: not a JSON array; there is text after its end")


def _filled(text: str, place: int) -> int:
    """The first place from `place` on that is not blank, as JSON counts it."""
    found = _BLANKS.match(text, place)
    assert found is not None
    return found.end()


def json_value(line: bytes, where: str, expected: str = "one object a line") -> object:
    """The JSON value of a line; raises PromptDataError that starts with `where` for what is none."""
    text = decoded(line, where)
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        problem = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        )
        raise PromptDataError(f"{where}: not a JSON object ({problem}); expected {expected}") from error
    except ValueError as error:  # a key given twice, more digits than Python converts, no finite number
        raise PromptDataError(f"{where}: not a JSON object ({error}); expected {expected}") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; Python would silently take the last of two values of one key."""
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return made


def _refused(name: str) -> object:
    """NaN and the infinities, which Python reads, are not JSON: later code could not send or write them."""
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits} is larger than a float can be")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refused, parse_float=_finite, object_pairs_hook=_object)
