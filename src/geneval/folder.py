"""A folder of images in GenEval's layout: ``00000/metadata.jsonl`` and ``00000/samples/00000.png``, ... ."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.geneval.requirements import Requirements, parse_requirements

METADATA, SAMPLES = "metadata.jsonl", "samples"
LISTED = 20  # places of missing images a message names


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and what its prompt asks for."""

    path: Path
    requirements: Requirements


@dataclass(frozen=True, slots=True)
class Gap:
    """A prompt's folder that holds fewer images than it should."""

    place: str
    there: int
    wanted: int


def read_folder(images: Path, samples: int | None = None, prompts: int | None = None) -> tuple[list[Sample], list[Gap]]:
    """All images by folder and number, and where some are missing.

    samples: images a prompt should have; None: as many as the fullest folder. prompts: how many there should be;
    None: up to the highest folder. Other files and folders are passed over, as the released scorer does.

    Raises:
        ValueError: for a folder in another layout, or metadata that cannot be read.
    """
    if not images.is_dir():
        raise ValueError(f"images={images}: no such folder; give one in GenEval's layout")
    folders = {int(path.name): path for path in images.iterdir() if path.is_dir() and path.name.isdigit()}
    if not folders:
        raise ValueError(f"images={images}: not in GenEval's layout; expected folders 00000, 00001, ... in it")
    pictures = {number: _numbered(folder / SAMPLES) for number, folder in folders.items()}
    wanted = samples or max(len(paths) for paths in pictures.values())
    if wanted == 0:
        raise ValueError(f"images={images}: no image in any of its {len(folders)} folders' {SAMPLES}/")
    found, gaps = [], []
    for number in range(max(*folders, (prompts or 0) - 1, 0) + 1):
        there = pictures.get(number, [])
        if len(there) < wanted:
            gaps.append(Gap(f"{number:05d}" if number not in folders else folders[number].name, len(there), wanted))
        if there:
            requirements = _requirements(folders[number] / METADATA)
            found += [Sample(path, requirements) for path in there]
    return found, gaps


def gaps_message(images: Path, gaps: Sequence[Gap]) -> str:
    """How many images are missing and where, for the user."""
    missing = sum(gap.wanted - gap.there for gap in gaps)
    places = [f"{gap.place} has {gap.there} of {gap.wanted}" for gap in gaps[:LISTED]]
    more = f" and {len(gaps) - LISTED} more folders" if len(gaps) > LISTED else ""
    return f"images={images}: {missing} images are missing in {len(gaps)} folders: {', '.join(places)}{more}"


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if path.is_file() and re.fullmatch(r"\d+\.png", path.name))
    return sorted(paths, key=lambda path: int(path.stem))


def _requirements(path: Path) -> Requirements:
    try:
        return parse_requirements(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: not found; every folder needs the line of evaluation_metadata.jsonl") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as one JSON object ({error})") from error
