"""``python -m src.score_geneval``: a folder of images to results and summary, with tiny models of the real kind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.benchmark_images.registry import BENCHMARKS
from src.benchmark_images.writer import Job, write_benchmark
from src.cli import command as cli
from src.geneval.colors import load_color_classifier
from src.geneval.detector import load_detector
from src.geneval.folder import read_folder
from src.geneval.rules import RuleSettings
from src.geneval.scoring import score
from src.score_geneval import command as score_geneval
from tests.benchmark_images.prompts import written
from tests.geneval.tiny import clip_folder, detector_folder

LINES = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"},
]


def images(root: Path, n: int = 2) -> Path:
    """Written by this project's own writer."""
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    items = BENCHMARKS["geneval"].read(written(root / "copy", {"evaluation_metadata.jsonl": text}))

    def paint(prompts, seeds):  # type: ignore[no-untyped-def]
        draws = [np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8) for seed in seeds]
        return [Image.fromarray(draw) for draw in draws]

    write_benchmark(Job(BENCHMARKS["geneval"], items, n), root / "images", paint)
    return root / "images"


def run(*arguments: str) -> int:
    return cli.run(score_geneval.COMMAND, list(arguments))


MODELS = (f"detector={detector_folder()}", f"clip={clip_folder()}")


def test_a_folder_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's results are those of the parts put together by hand, an image at a time."""
    folder, threshold = images(tmp_path), 0.01
    assert run(f"images={folder}", *MODELS, f"threshold={threshold}", "batch_size=3") == 0
    printed = capsys.readouterr().out
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    samples, _ = read_folder(folder)
    cpu = torch.device("cpu")
    detector, colors = load_detector(detector_folder(), cpu, threshold), load_color_classifier(clip_folder(), cpu)
    expected = list(score(samples, detector, colors, RuleSettings(threshold=threshold)))
    assert [result["filename"] for result in results] == [str(sample.path) for sample in samples]
    for result, alone in zip(results, expected, strict=True):
        assert list(result) == "filename tag prompt correct reason metadata details".split()
        details, reference = json.loads(result.pop("details")), json.loads(alone.pop("details"))
        assert result == alone
        assert details.keys() == reference.keys()
        for name, boxes in details.items():
            np.testing.assert_allclose(boxes, reference[name], atol=1e-4)
    assert any(json.loads(line)["details"] != "{}" for line in (folder / "results.jsonl").read_text().splitlines())
    assert "Total images: 4\nTotal prompts: 2\n" in printed
    assert "Overall score (avg. over tasks): " in printed


def test_missing_images_are_listed_and_may_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = images(tmp_path), tmp_path / "r" / "results.jsonl"
    (folder / "00000/samples/00001.png").unlink()
    for gone in sorted((folder / "00001").rglob("*"), reverse=True):
        gone.rmdir() if gone.is_dir() else gone.unlink()
    (folder / "00001").rmdir()
    assert run(f"images={folder}", f"out={out}") == cli.EXIT_WRONG_INPUT
    told = capsys.readouterr().err.strip()
    assert "3 images are missing in 2 folders: 00000 has 1 of 2, 00001 has 0 of 2" in told
    assert "\n" not in told
    assert not out.parent.exists()
    assert run(f"images={folder}", f"out={out}", "allow_missing=true", *MODELS) == 0
    assert len(out.read_text().splitlines()) == 1
    assert "3 images are missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "images: missing"),
        (["images=nowhere"], "images=nowhere: no such folder"),
        (["images=."], "not in GenEval's layout"),
        (["images=images", "samples=3"], "2 images are missing in 2 folders"),
        (["images=images", "out=taken"], "out=taken: already exists"),
        (["images=images", "out=images"], "out=images: already exists"),
        (["images=images", "threshold=2"], "threshold=2"),
        (["images=images", "max_overlap=0"], "max_overlap=0"),
        (["images=images", "detector=nowhere"], "detector=nowhere: no such directory"),
        (["images=images", "detector=copy", f"clip={clip_folder()}"], "not a Mask2Former"),
        (["images=images", f"detector={detector_folder(7)}", f"clip={clip_folder()}"], "knows 7 classes"),
        (["images=images", f"detector={detector_folder()}", "clip=copy"], "not a CLIPModel"),
        (["images=images", f"detector={detector_folder()}", "clip_repository=no/thing"], "hf download no/thing"),
    ],
)
def test_wrong_input_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path)
    (tmp_path / "taken").write_text("mine")
    capsys.readouterr()
    assert run(*arguments) == cli.EXIT_WRONG_INPUT
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in told
    assert told.startswith("error: ")
    assert (tmp_path / "taken").read_text() == "mine"
    assert not list(tmp_path.rglob("results.jsonl*"))


def test_the_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["score_geneval", "--help"])
    assert score_geneval.main() == 0
    assert "detector=DIR clip=DIR" in capsys.readouterr().out
