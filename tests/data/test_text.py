"""Plain-text prompt files, and which reader a file's name chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.lines import BadLines, decoded, split_lines
from src.data.records import PromptDataError
from src.data.splits import read_prompt_file
from src.data.text import read_text
from src.values import as_records


def test_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b'\xef\xbb\xbfa red circle\r\n\n   \n  two owls, left of {a} "door"  \nein W\xc3\xbcrfel')
    assert read_text(file) == list(as_records(["a red circle", 'two owls, left of {a} "door"', "ein Würfel"]))
    assert read_prompt_file(file) == read_text(file)


def test_bad_lines_raise_or_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a\n\xe9t\xe9\nb\n")
    with pytest.raises(PromptDataError, match=r"prompts\.txt:2: byte 0xe9 at column 1 is not UTF-8"):
        read_text(file)
    bad = BadLines("skip")
    assert read_text(file, bad) == list(as_records(["a", "b"]))
    assert [problem.split(": ")[0] for problem in bad.problems] == [f"{file}:2"]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(PromptDataError, match="contains no prompts; expected one prompt per line"):
        read_text(file)


def test_a_file_of_bad_lines_only_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\n\xfe\n")
    with pytest.raises(PromptDataError, match=r"all 2 lines are bad, the first: .*:1: byte 0xff"):
        read_text(file, BadLines("skip"))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptDataError, match=r"prompts\.csv: .*\.jsonl"):
        read_prompt_file(tmp_path / "prompts.csv")


@given(st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]))))
def test_lines_are_those_between_line_feeds(lines: list[str]) -> None:
    found = [decoded(line, where) for line, where in split_lines("\n".join(lines).encode(), "x")]
    wanted = "\n".join(lines).removeprefix("\ufeff").split("\n")
    assert found == [line for line in wanted if line.encode().strip()]


@pytest.mark.parametrize("blank", ["\x1c", "\u3000", "\u2028 \x85"])
def test_a_line_of_other_white_space_is_blank(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"a dog\n{blank}\na cat\n", encoding="utf-8")
    assert [record.prompt for record in read_text(path)] == ["a dog", "a cat"]
    path.write_text(f"{blank}\n", encoding="utf-8")
    with pytest.raises(PromptDataError, match="contains no prompts"):
        read_text(path)
