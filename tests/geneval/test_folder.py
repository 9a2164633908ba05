"""Folders in GenEval's layout: what is read, what is passed over, what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from src.geneval.folder import LISTED, Gap, gaps_message, read_folder

LINE = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}


def folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name / "samples").mkdir(parents=True)
        (root / name / "metadata.jsonl").write_text(json.dumps(LINE | {"prompt": name}))
        for number in range(count):
            Image.new("RGB", (4, 4)).save(root / name / "samples" / f"{number:04d}.png")
    return root


def test_images_come_by_number_with_their_prompts(tmp_path: Path) -> None:
    """As the released scorer's own rules have it: digit folders, digit .png files; numbers, not text, set the order."""
    folder(tmp_path, {"00000": 2, "2": 2, "0010": 2, "1": 2, "03": 2})
    (tmp_path / "notes").mkdir()
    (tmp_path / "benchmark.json").write_text("{}")
    (tmp_path / "1" / "grid.png").touch()
    for other in ("a.png", "0001.jpg", "0002.png.partial"):
        (tmp_path / "1" / "samples" / other).touch()
    samples, gaps = read_folder(tmp_path)
    assert [str(one.path.relative_to(tmp_path)) for one in samples] == [
        f"{name}/samples/000{number}.png" for name in ("00000", "1", "2", "03", "0010") for number in (0, 1)
    ]
    assert [one.requirements.prompt for one in samples][::2] == ["00000", "1", "2", "03", "0010"]
    assert gaps == [Gap(f"{number:05d}", 0, 2) for number in range(4, 10)]


def test_gaps_are_found_and_counted(tmp_path: Path) -> None:
    folder(tmp_path, {"00000": 4, "00001": 3, "00003": 4, "00004": 0})
    samples, gaps = read_folder(tmp_path)
    assert len(samples) == 11
    assert gaps == [Gap("00001", 3, 4), Gap("00002", 0, 4), Gap("00004", 0, 4)]
    assert gaps_message(tmp_path, gaps) == (
        f"images={tmp_path}: 9 images are missing in 3 folders: 00001 has 3 of 4, 00002 has 0 of 4, 00004 has 0 of 4"
    )
    assert read_folder(tmp_path, samples=5, prompts=6)[1][-1] == Gap("00005", 0, 5)
    many = [Gap(f"{number:05d}", 0, 4) for number in range(LISTED + 3)]
    assert gaps_message(tmp_path, many).endswith("00019 has 0 of 4 and 3 more folders")


def test_a_whole_folder_has_no_gaps(tmp_path: Path) -> None:
    assert read_folder(folder(tmp_path, {"00000": 1}))[1] == []
    assert read_folder(tmp_path, samples=1, prompts=1)[1] == []


@pytest.mark.parametrize(
    ("counts", "words"), [({}, "not in GenEval's layout"), ({"notes": 1}, "not in"), ({"00000": 0}, "no image in any")]
)
def test_other_folders_are_refused(tmp_path: Path, counts: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_folder(folder(tmp_path, counts))
    with pytest.raises(ValueError, match="no such folder"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "not found"), ("{", "one JSON object"), ("{}\n{}", "one JSON object"), ("{}", "not a line")],
)
def test_metadata_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = folder(tmp_path, {"00000": 1}) / "00000" / "metadata.jsonl"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=words) as raised:
        read_folder(tmp_path)
    assert str(path) in str(raised.value)
