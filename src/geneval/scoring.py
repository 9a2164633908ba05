"""Images to results in the released scorer's format, and results to the summary its users know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image, ImageOps

from src.geneval.detections import Detection
from src.geneval.folder import Sample
from src.geneval.rules import RuleSettings, judge

Detect = Callable[[Sequence[Image.Image]], Sequence[Sequence[Detection]]]
NameColorsIn = Callable[[Image.Image, str, Sequence[Detection]], list[str]]
Result = dict[str, Any]


def score(
    samples: Sequence[Sample],
    detect: Detect,
    name_colors: NameColorsIn,
    settings: RuleSettings = RuleSettings(),  # noqa: B008 (frozen)
    batch_size: int = 1,
) -> Iterator[Result]:
    """For each sample, in order, a line of results.jsonl: filename, tag, prompt, correct, reason, metadata, details.

    metadata and details (by class: left, top, right, bottom, score) are JSON in a string, as in the released format.
    batch_size: images the detector gets at once; of speed only.

    Raises:
        ValueError: for a file that is no image.
    """
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        images = [_image(sample) for sample in part]
        for sample, image, detections in zip(part, images, detect(images), strict=True):
            wanted = sample.requirements
            verdict = judge(wanted, detections, partial(name_colors, image), settings)
            boxes = {name: [[*one.box, one.score] for one in objects] for name, objects in verdict.found.items()}
            yield {
                "filename": str(sample.path),
                "tag": wanted.tag,
                "prompt": wanted.prompt,
                "correct": verdict.correct,
                "reason": verdict.reason,
                "metadata": json.dumps(wanted.metadata),
                "details": json.dumps(boxes),
            }


def _image(sample: Sample) -> Image.Image:
    try:
        with Image.open(sample.path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{sample.path}: not a readable image ({error})") from error


@dataclass(frozen=True, slots=True)
class TagScore:
    """Of the images of a tag: how many there are, and how many are correct."""

    tag: str
    correct: int
    images: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.correct / self.images


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares in [0, 1]; a prompt is correct if any of its images is, `overall` is the mean over tags."""

    images: int
    prompts: int
    correct_images: float
    correct_prompts: float
    tags: tuple[TagScore, ...]
    overall: float


def summarise(results: Sequence[Result]) -> Summary:
    """The figures of the released summary_scores.py; tags in order of appearance, prompts told apart by metadata."""
    tags: dict[str, list[bool]] = {}
    prompts: dict[str, list[bool]] = {}
    for result in results:
        tags.setdefault(result["tag"], []).append(result["correct"])
        prompts.setdefault(result["metadata"], []).append(result["correct"])
    scores = tuple(TagScore(tag, sum(correct), len(correct)) for tag, correct in tags.items())
    return Summary(
        images=len(results),
        prompts=len(prompts),
        correct_images=sum(result["correct"] for result in results) / len(results),
        correct_prompts=sum(any(correct) for correct in prompts.values()) / len(prompts),
        tags=scores,
        overall=sum(tag.share for tag in scores) / len(scores),
    )


def summary_text(summary: Summary) -> str:
    """What is printed: the lines of the released summary_scores.py."""
    lines = [
        "Summary",
        "=======",
        f"Total images: {summary.images}",
        f"Total prompts: {summary.prompts}",
        f"% correct images: {summary.correct_images:.2%}",
        f"% correct prompts: {summary.correct_prompts:.2%}",
        "",
        "Task breakdown",
        "==============",
        *(f"{tag.tag:<16} = {tag.share:.2%} ({tag.correct} / {tag.images})" for tag in summary.tags),
        "",
        f"Overall score (avg. over tasks): {summary.overall:.5f}",
    ]
    return "\n".join(lines)
