"""Results in the released format, and the summary the released script would print of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from src.geneval.detections import Detection
from src.geneval.folder import Sample
from src.geneval.requirements import parse_requirements
from src.geneval.scoring import score, summarise, summary_text

CAR = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a photo of a red car"}


def sample(root: Path, name: str, color: str, line: dict[str, object] = CAR) -> Sample:
    Image.new("RGB", (8, 6), color).save(root / name)
    return Sample(root / name, parse_requirements(line, name))


def detect(images: Sequence[Image.Image]) -> list[list[Detection]]:
    return [[Detection("car", 0.8, (1, 1, 7, 5)), Detection("dog", 0.1, (0, 0, 1, 1))] for _ in images]


def main_color(image: Image.Image, name: str, objects: Sequence[Detection]) -> list[str]:
    return ["red" if image.getpixel((3, 3)) == (255, 0, 0) else "blue" for _ in objects]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_result_has_the_released_fields(tmp_path: Path, batch_size: int) -> None:
    samples = [sample(tmp_path, f"{i}.png", color) for i, color in enumerate(["red", "blue", "red"])]
    results = list(score(samples, detect, main_color, batch_size=batch_size))
    assert [result["correct"] for result in results] == [True, False, True], "each image is asked for its own colour"
    assert results[1] == {
        "filename": str(tmp_path / "1.png"),
        "tag": "colors",
        "prompt": "a photo of a red car",
        "correct": False,
        "reason": "expected red car>=1, found 0 red; and 1 blue",
        "metadata": json.dumps(CAR),
        "details": '{"car": [[1, 1, 7, 5, 0.8]]}',
    }
    assert list(results[0]) == "filename tag prompt correct reason metadata details".split()


def test_an_image_is_turned_as_it_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("L", (8, 6)).save(tmp_path / "0.png", exif=exif)
    seen: list[Image.Image] = []
    turned = Sample(tmp_path / "0.png", parse_requirements(CAR, "x"))
    list(score([turned], lambda images: [seen.append(image) or [] for image in images], main_color))  # type: ignore[func-returns-value]
    assert [(image.size, image.mode) for image in seen] == [((6, 8), "RGB")]


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"0\.png: not a readable image"):
        list(score([Sample(tmp_path / "0.png", parse_requirements(CAR, "x"))], detect, main_color))


def results_of(*rows: tuple[str, str, bool]) -> list[dict[str, object]]:
    return [{"tag": tag, "metadata": metadata, "correct": correct} for tag, metadata, correct in rows]


def test_the_summary_by_hand() -> None:
    """Tags weigh alike however many images they have; a prompt counts if one image does."""
    summary = summarise(
        results_of(
            *[("two_object", "a", correct) for correct in (True, False, False, False)],
            *[("counting", "b", correct) for correct in (True, True)],
            *[("counting", "c", correct) for correct in (False, False)],
            ("position", "d", False),
        )
    )
    assert summary.overall == pytest.approx((1 / 4 + 2 / 4 + 0) / 3)
    assert (summary.images, summary.prompts) == (9, 4)
    assert (summary.correct_images, summary.correct_prompts) == (pytest.approx(3 / 9), pytest.approx(2 / 4))
    assert [(tag.tag, tag.correct, tag.images) for tag in summary.tags] == [
        ("two_object", 1, 4),
        ("counting", 2, 4),
        ("position", 0, 1),
    ]


def test_the_summary_is_what_pandas_makes_of_the_file() -> None:
    """By the released summary_scores.py's own steps: a frame of the JSON lines, grouped by metadata and by tag."""
    pandas = pytest.importorskip("pandas")
    rows = results_of(*[(f"tag{i % 3}", f"prompt{i // 4}", i * 7 % 5 < 2) for i in range(48)])
    frame = pandas.read_json(io.StringIO("\n".join(json.dumps(row) for row in rows)), orient="records", lines=True)
    by_tag = {tag: part["correct"].mean() for tag, part in frame.groupby("tag", sort=False)}
    summary = summarise(rows)
    assert summary.overall == pytest.approx(sum(by_tag.values()) / len(by_tag))
    assert summary.correct_prompts == pytest.approx(frame.groupby("metadata")["correct"].any().mean())
    assert summary.correct_images == pytest.approx(frame["correct"].mean())
    assert {tag.tag: pytest.approx(tag.share) for tag in summary.tags} == by_tag


def test_the_text_has_the_released_lines() -> None:
    text = summary_text(summarise(results_of(("colors", "a", True), ("colors", "a", False), ("counting", "b", False))))
    assert text == (
        "Summary\n=======\nTotal images: 3\nTotal prompts: 2\n% correct images: 33.33%\n% correct prompts: 50.00%\n\n"
        "Task breakdown\n==============\ncolors           = 50.00% (1 / 2)\ncounting         = 0.00% (0 / 1)\n\n"
        "Overall score (avg. over tasks): 0.25000"
    )
