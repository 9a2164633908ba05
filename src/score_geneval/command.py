"""GenEval's score without mmdetection: ``python -m src.score_geneval images=DIR out=results.jsonl``.

Reads images in GenEval's layout, writes its results.jsonl and prints its summary (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import command as cli
from src.config.errors import UserError

if TYPE_CHECKING:
    from src.geneval.folder import Sample
    from src.geneval.rules import RuleSettings
    from src.geneval.scoring import Result

MODEL_FILES = ("*.json", "*.txt", "*.safetensors")


def score_geneval(config: Any) -> int:
    """Score a folder; returns the exit code. What is wrong with the folder shows before any weight is loaded."""
    from src.geneval.rules import RuleSettings
    from src.geneval.scoring import summarise, summary_text

    if config.images is None:
        raise UserError("images: missing; give a folder in GenEval's layout")
    images = Path(config.images).expanduser()
    out = Path(config.out).expanduser() if config.out is not None else images / "results.jsonl"
    samples = read_samples(config, images)
    if out.is_dir() or (out.exists() and not config.overwrite):
        raise UserError(f"out={out}: already exists; choose another file or add overwrite=true")
    settings = RuleSettings(
        config.threshold,
        config.counting_threshold,
        config.max_objects,
        config.max_overlap,
        config.position_threshold,
    )
    try:
        results = scored(config, samples, settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    write_results(out, results)
    print(summary_text(summarise(results)))
    print(f"\n{out}")
    return 0


def read_samples(config: Any, images: Path) -> list[Sample]:
    """The images to score.

    Raises:
        UserError: for a folder in another layout, or one that lacks images, unless config.allow_missing.
    """
    from src.benchmark_images.manifest import read_manifest
    from src.geneval.folder import gaps_message, read_folder

    manifest = read_manifest(images) or {}
    try:
        samples, gaps = read_folder(images, config.samples or manifest.get("n"), manifest.get("prompts"))
    except ValueError as error:
        raise UserError(str(error)) from error
    if gaps and not config.allow_missing:
        raise UserError(f"{gaps_message(images, gaps)}; paint them, or add allow_missing=true to score the others")
    if gaps:
        print(gaps_message(images, gaps), file=sys.stderr)
    return samples


def scored(config: Any, samples: Sequence[Sample], settings: RuleSettings) -> list[Result]:
    """The results of all samples, by models of the user's or of the hub.

    Raises:
        ValueError: for weights that cannot be had or used, or an image that cannot be read.
    """
    from src.build import device
    from src.geneval.colors import load_color_classifier
    from src.geneval.detector import load_detector
    from src.geneval.scoring import score
    from src.hub import find_directory
    from src.policies.load import quiet

    quiet()
    floor = min(settings.threshold, settings.counting_threshold)
    folder = find_directory("detector", config.detector, config.detector_repository, MODEL_FILES)
    clip = find_directory("clip", config.clip, config.clip_repository, MODEL_FILES)
    detector, colors = load_detector(folder, device(), floor), load_color_classifier(clip, device())
    results = []
    for result in score(samples, detector, colors, settings, config.batch_size):
        results.append(result)
        if len(results) % 100 == 0:
            print(f"{len(results)} of {len(samples)} images", file=sys.stderr, flush=True)
    return results


def write_results(out: Path, results: Sequence[Result]) -> None:
    """One JSON object a line, whole or not at all; raises UserError where nothing can be written."""
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(json.dumps(result) + "\n" for result in results), encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from error


COMMAND = cli.Command(
    name="score_geneval",
    about="Score images in GenEval's layout by GenEval's rules, with Mask2Former and CLIP through transformers.",
    examples=(
        "images=images/geneval",
        "images=images/geneval out=results.jsonl detector=models/mask2former clip=models/clip",
    ),
    task=score_geneval,
    config="score_geneval",
    groups=(),
    keys=(
        "images=DIR                        00000/metadata.jsonl, 00000/samples/00000.png, ...",
        "out=FILE                          null: results.jsonl in that folder; overwrite=true replaces it",
        "detector=DIR clip=DIR             weights; else those of detector_repository and clip_repository",
        "samples=N allow_missing=true      images a prompt; score a folder that lacks some",
        "threshold counting_threshold max_objects max_overlap position_threshold batch_size",
    ),
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
