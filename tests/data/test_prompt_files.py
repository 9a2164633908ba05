"""What a prompt file may be and hold: told by its content, with the line of what is wrong in it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from src.cli.prompt_source import PromptSource, read_prompts
from src.config.errors import UserError
from src.data.jsonl import read_jsonl
from src.data.lines import LONGEST_LINE, BadLines
from src.data.records import PromptDataError
from src.data.splits import hold_out, kind_of, load_splits, read_prompt_file
from src.data.text import read_text
from src.values import PromptRecord

LINES = '{"prompt": "a red dot", "task_type": "color"}\n\n{"prompt": "two dots"}\n'
ARRAY = '\n[\n  {"prompt": "a red dot", "task_type": "color"},\n  {\n "prompt": "two dots"\n}\n]\n'
RECORDS = [PromptRecord("a red dot", "color"), PromptRecord("two dots")]


@pytest.mark.parametrize("name", ["geneval_and_t2i_data_final.json", "p.jsonl", "p.txt", "p", "p.list"])
@pytest.mark.parametrize(("content", "places"), [(LINES, (1, 3)), (ARRAY, (3, 4))])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_records_are_found_under_any_name(
    tmp_path: Path, name: str, content: str, places: tuple[int, ...], mark: str
) -> None:
    """The released training set is JSON lines, and its name ends in .json."""
    file = tmp_path / name
    file.write_text(mark + content, encoding="utf-8")
    found = read_prompt_file(file)
    assert found == RECORDS
    assert [record.place for record in found] == [f"{file}:{line}" for line in places]


@pytest.mark.parametrize("name", ["p.txt", "p", "p.prompts"])
@pytest.mark.parametrize("prompt", ["a red dot", "{a} red dot", "[a] red dot", '["a", "b"]', '{"a": 1}', "{ broken"])
def test_a_prompt_in_brackets_stays_a_prompt(tmp_path: Path, name: str, prompt: str) -> None:
    (tmp_path / name).write_text(f"{prompt}\ntwo dots\n", encoding="utf-8")
    assert [record.prompt for record in read_prompt_file(tmp_path / name)] == [prompt, "two dots"]


def test_an_array_of_prompts_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('["a red dot", {"prompt": "two dots"}]')
    assert [record.prompt for record in read_prompt_file(tmp_path / "p.json")] == ["a red dot", "two dots"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[\n{"prompt": "a"}\n{"prompt": "b"}]', r"p\.json:3: not a JSON array; expected , or \] here"),
        ('[\n{"prompt": "a"},\n]', r"p\.json:3: not a JSON array of prompts"),
        ('[\n{"prompt": "a"}', r"p\.json:2: not a JSON array; expected"),
        ('[\n{"prompt": "a"}]\nx', r"p\.json:2: not a JSON array; there is text after its end"),
        ('[{"prompt": "a"},\n{"promt": "b"}]', r"p\.json:2: unknown field 'promt'"),
        ('[{"prompt": "a"},\n\n{"prompt": "b", "prompt": "c"}]', r"p\.json:3: .*the key 'prompt' occurs twice"),
        ("[]", r"p\.json: contains no prompts"),
        ("[" * 100_000, r"p\.json:1: not a JSON array"),
    ],
)
def test_what_is_wrong_in_an_array_is_told_with_its_line(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(PromptDataError, match=problem):
        read_prompt_file(tmp_path / "p.json")


def test_tables_are_refused(tmp_path: Path) -> None:
    """Read as text, the names of its columns would be the first prompt."""
    (tmp_path / "p.csv").write_text("prompt,kind\na dot,color\n")
    with pytest.raises(PromptDataError, match=r"p\.csv: is a table; expected a file of prompts"):
        kind_of(tmp_path / "p.csv")


@pytest.mark.parametrize("where", ["", '"task_type": "a", ', '"scene": {"x": 1, "x": 2}, '])
def test_a_key_given_twice_is_a_bad_line(tmp_path: Path, where: str) -> None:
    twice = "x" if "scene" in where else "task_type" if where else "prompt"
    line = "{" + where + '"prompt": "a"' + (', "task_type": "b"' if twice == "task_type" else "")
    line += ', "prompt": "b"}' if twice == "prompt" else "}"
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(PromptDataError, match=rf"p\.jsonl:2: .*the key '{twice}' occurs twice"):
        read_jsonl(tmp_path / "p.jsonl")


@pytest.mark.parametrize("letter", ["\0", "\x07", "\x1b", "\x7f", "\x9b", "\x0c"])
def test_control_characters_are_refused_wherever_words_are_given(tmp_path: Path, letter: str) -> None:
    file, text = tmp_path / "p.jsonl", f"a {letter} dog"
    told = "NUL byte" if letter == "\0" else rf"the control character U\+00{ord(letter):02X} as its letter 3"
    for field, value in (
        ("prompt", text),
        ("task_type", text),
        ("nouns", [text]),
        ("spatial_info", {"obj1": text, "obj2": "b", "locality": "left of"}),
        ("numeracy_info", [{"obj_name": text, "num": 1}]),
    ):
        file.write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "a", field: value}) + "\n")
        with pytest.raises(PromptDataError, match=r"p\.jsonl:2: field '.*control character"):
            read_jsonl(file)
    (tmp_path / "p.txt").write_text(f"a dog\n{text}\n", encoding="utf-8")
    with pytest.raises(PromptDataError, match=rf"p\.txt:2: holds (a )?{told}"):
        read_text(tmp_path / "p.txt")
    with pytest.raises(UserError, match="prompts: a prompt holds the control character"):
        read_prompts(PromptSource((text,)))


@pytest.mark.parametrize("text", ["a tab\tand more", "a sign\u2028in lines\x85here", "👩‍👩‍👧 family", "‏שלום"])
def test_other_letters_stay(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.txt").write_text(text + "\n", encoding="utf-8")
    assert [record.prompt for record in read_text(tmp_path / "p.txt")] == [text]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json"])
def test_utf_16_is_told_by_its_name(tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / name).write_bytes(LINES.encode(encoding))
    with pytest.raises(
        PromptDataError, match=r"holds (a NUL byte|UTF-16's mark), as files in UTF-16 do; save .* UTF-8"
    ):
        read_prompt_file(tmp_path / name)


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "p.txt").open("wb") as file:
        file.write(b"a dog\n" + b"x" * (LONGEST_LINE + 10))
    with pytest.raises(PromptDataError, match=rf"p\.txt:2: is longer than {LONGEST_LINE} bytes"):
        read_text(tmp_path / "p.txt")


def test_many_prompts_are_split_in_one_pass() -> None:
    """Ten times the prompts, ten times the time: once it was a hundred times, and a million never came to an end."""

    def seconds(number: int) -> float:
        records = [PromptRecord(f"{index} dogs") for index in range(number)]
        begun = time.process_time()
        splits = hold_out(records, 0, 0.05)
        assert len(splits.train) + len(splits.validation) + len(splits.test) == number
        return time.process_time() - begun

    few = min(seconds(2_000) for _ in range(3))
    assert seconds(20_000) < 40 * few


def test_a_long_file_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.data.lines._SECONDS", 0.0)
    (tmp_path / "p.txt").write_text("a dog\n" * 25_000)
    assert len(read_prompt_file(tmp_path / "p.txt")) == 25_000
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{tmp_path / 'p.txt'}: {number:,} lines read ..." for number in (10_000, 20_000)]


def test_skipped_lines_of_every_kind_are_counted(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('[{"prompt": "a"}, 3, {"prompt": "b"}, {"prompt": "c"}, {"prompt": "\\u0000"}]')
    bad = BadLines("skip")
    splits = load_splits(tmp_path / "p.json", bad=bad)
    assert len(splits.train) == 1
    assert len(bad.problems) == 2
