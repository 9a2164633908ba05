"""The JSONL reader: the released format, and errors that name file, line, field and what was expected."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from src.data.jsonl import read_jsonl
from src.data.lines import BadLines
from src.data.records import PromptDataError, parse_record
from src.values import ObjectCount, PromptRecord, SpatialRelation

FIXTURE = Path(__file__).parent / "prompts.jsonl"
TASK_TYPES = {"spatial", "numeracy", "color", "complex", "non", "texture", "shape", "object"}
LOCALITIES = {
    *("left of", "right of", "above", "below", "next to", "near", "on side of", "on top of"),
    *("on the left of", "on the right of", "on the top of", "on the bottom of"),
}


def test_fixture_covers_every_task_type_and_locality() -> None:
    records = read_jsonl(FIXTURE)
    assert {record.task_type for record in records} == TASK_TYPES
    assert {record.spatial.locality for record in records if record.spatial} == LOCALITIES


def test_fields_reach_their_places() -> None:
    by_prompt = {record.prompt: record for record in read_jsonl(FIXTURE)}
    assert by_prompt["a photo of a clock above a fire hydrant"] == PromptRecord(
        "a photo of a clock above a fire hydrant",
        "spatial",
        nouns=("clock", "fire hydrant"),
        spatial=SpatialRelation("clock", "fire hydrant", "above"),
    )
    assert by_prompt["three lanterns, two owls"].counts == (ObjectCount("lantern", 3), ObjectCount("owl", 2))
    assert by_prompt["an oval mirror and a square cushion"].attribute_nouns == ("oval mirror", "square cushion")


def test_only_the_prompt_is_required() -> None:
    assert parse_record({"prompt": "a"}, "x:1") == PromptRecord("a", "none")


def test_scene_is_kept_as_it_is() -> None:
    scene = {"objects": [{"color": "red", "cell": [0, 2]}]}
    assert parse_record({"prompt": "a", "task_type": "one", "scene": scene}, "x:1").scene == scene


def test_null_means_absent() -> None:
    data = {
        "prompt": "a",
        "nouns": None,
        "attr_nouns": None,
        "spatial_info": None,
        "numeracy_info": None,
        "scene": None,
    }
    assert parse_record(data, "x:1") == PromptRecord("a")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([1], ("JSON object", "list")),
        ({"task_type": "one"}, ("'prompt'", "missing", "non-empty string")),
        ({"prompt": "  "}, ("'prompt'", "non-empty string", "'  '")),
        ({"prompt": 3}, ("'prompt'", "3 (int)")),
        ({"prompt": "a", "task_type": None}, ("'task_type'", "None")),
        ({"prompt": "a", "nouns": "car"}, ("'nouns'", "list of non-empty strings", "'car' (str)")),
        ({"prompt": "a", "attr_nouns": ["x", 2]}, ("'attr_nouns'", "['x', 2]")),
        ({"prompt": "a", "noun": ["car"]}, ("unknown field 'noun'", "nouns", "'scene'")),
        ({"prompt": "a", "spatial_info": {"obj1": "x"}}, ("'spatial_info'", "obj1, obj2, locality")),
        ({"prompt": "a", "spatial_info": {"obj1": "x", "obj2": "", "locality": "near"}}, ("spatial_info.obj2", "''")),
        ({"prompt": "a", "numeracy_info": {"obj_name": "x", "num": 1}}, ("'numeracy_info'", "list of objects")),
        ({"prompt": "a", "numeracy_info": [{"obj_name": "x"}]}, ("numeracy_info[0]", "obj_name, num")),
        ({"prompt": "a", "numeracy_info": [{"obj_name": "x", "num": 0}]}, ("numeracy_info[0].num", ">= 1", "0 (int)")),
        ({"prompt": "a", "numeracy_info": [{"obj_name": "x", "num": True}]}, ("numeracy_info[0].num", "True (bool)")),
        ({"prompt": "a", "numeracy_info": [{"obj_name": "x", "num": 2.0}]}, ("numeracy_info[0].num", "2.0 (float)")),
        ({"prompt": "a", "scene": [1]}, ("'scene'", "an object")),
    ],
)
def test_wrong_records_name_place_field_expectation_and_value(data: object, words: tuple[str, ...]) -> None:
    with pytest.raises(PromptDataError) as caught:
        parse_record(data, "prompts.jsonl:7")
    message = str(caught.value)
    assert message.startswith("prompts.jsonl:7: ")
    for word in words:
        assert word in message


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", b'{"prompt": "a"}\n\n{"prompt": 1}\n')
    with pytest.raises(PromptDataError, match=r"p\.jsonl:3: field 'prompt'"):
        read_jsonl(path)


def test_a_missing_file_names_the_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(PromptDataError, match=r"nowhere\.jsonl: no such file; set data\.path"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PromptDataError, match="cannot be read"):
        read_jsonl(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_a_file_without_records_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PromptDataError, match=r"p\.jsonl: contains no prompts"):
        read_jsonl(write(tmp_path / "p.jsonl", content))


@pytest.mark.parametrize(
    "bad", [b'{"prompt": "a"', b"a red circle", b'{"prompt": "a"} {"prompt": "b"}', b"[" * 100_000]
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: bytes) -> None:
    with pytest.raises(PromptDataError, match=r"p\.jsonl:2: not a JSON object"):
        read_jsonl(write(tmp_path / "p.jsonl", b'{"prompt": "a"}\n' + bad + b"\n"))


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    line = '{"prompt": "a café"}'.encode("latin-1")
    with pytest.raises(PromptDataError, match=r"p\.jsonl:2: byte 0xe9 at column 18 is not UTF-8"):
        read_jsonl(write(tmp_path / "p.jsonl", b'{"prompt": "a"}\n' + line))


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [record.prompt for record in read_jsonl(path)] == ["a", "b"]


def test_unicode_line_separators_stay_inside_a_prompt(tmp_path: Path) -> None:
    prompt = "a sign that says “ja\u2028nein\x85”"
    path = write(tmp_path / "p.jsonl", (json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n").encode())
    assert [record.prompt for record in read_jsonl(path)] == [prompt]


@pytest.mark.skipif("T2I_R1_PROMPTS" not in os.environ, reason="T2I_R1_PROMPTS does not name the released training set")
def test_the_released_training_set_loads_completely() -> None:
    """Counts as published with the set (7,223 prompts; 1,783 of them end in a full stop)."""
    records = read_jsonl(os.environ["T2I_R1_PROMPTS"])
    assert Counter(record.task_type for record in records) == {
        **{"spatial": 2195, "numeracy": 1172, "color": 879, "complex": 700},
        **{"non": 700, "texture": 695, "shape": 682, "object": 200},
    }
    assert sum(record.prompt.endswith(".") for record in records) == 1783
    assert {record.spatial.locality for record in records if record.spatial} == LOCALITIES
    assert all(record.spatial for record in records if record.task_type == "spatial")
    assert all(record.counts for record in records if record.task_type == "numeracy")
    assert all(record.attribute_nouns for record in records if record.task_type in ("color", "texture", "shape"))


def test_bad_lines_can_be_skipped(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n[]\n{"prompt": 3}\n{"prompt": "b", "nouns": "x"}\n{"prompt": "c"}\n')
    bad = BadLines("skip")
    assert [record.prompt for record in read_jsonl(file, bad)] == ["a", "c"]
    assert [problem.split(": ")[0] for problem in bad.problems] == [f"{file}:{line}" for line in (2, 3, 4)]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_finite_number_is_a_bad_line(tmp_path: Path, number: str) -> None:
    """Python reads it, but no reward server could be sent it: told at the start, with its line."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join('{"prompt": "a", "scene": {"x": ' + x + "}}\n" for x in ("1.5e3", number)))
    with pytest.raises(PromptDataError, match=rf"prompts\.jsonl:2: .*{number} is"):
        read_jsonl(path)
    assert read_jsonl(path, BadLines("skip"))[0].scene == {"x": 1500.0}


def test_an_endless_integer_is_a_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": ' + "9" * 5000 + "}\n")
    with pytest.raises(PromptDataError, match=r"prompts\.jsonl:1: not a JSON object"):
        read_jsonl(file)


@pytest.mark.parametrize("field", ["prompt", "task_type", "nouns", "attr_nouns"])
def test_half_a_character_is_no_text(tmp_path: Path, field: str) -> None:
    """JSON can spell a lone surrogate, UTF-8 and so every file that is written of it cannot."""
    path = tmp_path / "prompts.jsonl"
    value = '["a \\ud800"]' if field.endswith("nouns") else '"a \\ud800"'
    first = "" if field == "prompt" else '"prompt": "x", '
    path.write_text('{"prompt": "a dog"}\n{' + first + f'"{field}": {value}' + "}\n", encoding="ascii")
    with pytest.raises(PromptDataError, match=f"prompts.jsonl:2: field '{field}'"):
        read_jsonl(path)
