"""Prompt files: any bytes give records or a PromptDataError that names the file, in both ways of taking bad lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from src.data.jsonl import read_jsonl
from src.data.lines import BadLines
from src.data.records import FIELDS, PromptDataError, parse_record
from src.data.text import read_text
from src.rewards.wire import record_json
from src.values import PromptRecord
from tests.fuzz.budget import MORE, fuzz
from tests.fuzz.damage import EDITS, damaged, json_values, texts

GOOD = (Path(__file__).parents[1] / "data" / "prompts.jsonl").read_bytes()
nearly: dict[str, st.SearchStrategy[Any]] = {
    "prompt": texts,
    "task_type": texts,
    "nouns": st.lists(texts, max_size=3),
    "attr_nouns": st.lists(texts, max_size=3),
    "spatial_info": st.fixed_dictionaries({"obj1": texts, "obj2": texts, "locality": texts}),
    "numeracy_info": st.lists(st.fixed_dictionaries({"obj_name": texts, "num": st.integers(-1, 9)}), max_size=2),
    "scene": st.dictionaries(texts, json_values, max_size=2),
}
records = st.fixed_dictionaries({"prompt": texts}, optional={name: nearly[name] | json_values for name in FIELDS[1:]})
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
sound = st.fixed_dictionaries(
    {"prompt": words},
    optional={
        "task_type": words,
        "nouns": st.lists(words, max_size=3),
        "spatial_info": st.fixed_dictionaries({"obj1": words, "obj2": words, "locality": words}),
        "numeracy_info": st.lists(st.fixed_dictionaries({"obj_name": words, "num": st.integers(1, 9)}), max_size=2),
        "scene": st.dictionaries(texts, json_values, max_size=2),
    },
)
lines = st.one_of(
    records.map(lambda data: json.dumps(data).encode()),
    records.map(lambda data: json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    json_values.map(lambda data: json.dumps(data).encode()),
    st.binary(max_size=40),
    st.sampled_from(
        [b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b"\xef\xbb\xbf{}", b"{}", b'{"prompt": "a red dot"}']
    ),
)
files = st.one_of(
    st.lists(sound.map(lambda data: json.dumps(data).encode()), min_size=1, max_size=4).map(b"\n".join),
    st.lists(lines, max_size=5).map(b"\n".join),
    EDITS.map(lambda edits: damaged(GOOD, edits)),
    st.binary(max_size=200),
)


def _sound(record: PromptRecord) -> None:
    """A record that was taken can be written and read again, and sent."""
    written = json.dumps(record_json(record))
    assert repr(parse_record(json.loads(written), "again")) == repr(record)
    for text in (record.prompt, record.task_type, *record.nouns, *record.attribute_nouns):
        text.encode()


def _read(read: Callable[..., list[PromptRecord]], path: Path, bad: BadLines) -> tuple[list[PromptRecord], str | None]:
    """The records of a file, or the message of the one error that is documented."""
    try:
        return read(path, bad), None
    except PromptDataError as error:
        return [], str(error)


@pytest.mark.parametrize("many", MORE)
def test_jsonl(tmp_path: Path, many: int | None) -> None:
    path = tmp_path / "prompts.jsonl"

    def check(content: bytes) -> str:
        path.write_bytes(content)
        for read in (read_jsonl, read_text):
            for bad in (BadLines(), BadLines("skip")):
                found, problem = _read(read, path, bad)
                if problem is not None:
                    assert problem.startswith(str(path))
                    assert len(problem.encode()) < 2000
                for record in found:
                    _sound(record)
                if read is read_jsonl and not bad.skip:
                    told = "records" if problem is None else "PromptDataError"
        return told

    fuzz("JSONL reader", files, check, 60, many)
