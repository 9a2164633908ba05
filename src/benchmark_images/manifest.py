"""``benchmark.json`` next to a benchmark's images: what they were painted with, so that images are not mixed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.config.errors import UserError

FILE = "benchmark.json"
Manifest = dict[str, Any]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None if it has none; raises UserError if it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); choose another folder") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (not an object); choose another folder")
    return value


def check_folder(out: Path, manifest: Mapping[str, Any]) -> None:
    """Raise UserError unless `out` is free or has images of the same manifest; call this before any work is done."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file; give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    there = read_manifest(out)
    if there is None:
        raise UserError(f"out={out}: is not empty and has no {FILE}; choose another folder")
    here = json.loads(json.dumps(manifest))
    for key in {**here, **there}:
        if there.get(key) != here.get(key):
            raise UserError(
                f"out={out}: holds images of {key}={there.get(key)}, not {here.get(key)}; choose another folder, or"
                " continue with its original settings"
            )


def write_text(path: Path, text: str, partial: Path) -> None:
    """Write a file whole or not at all, by way of the folder `partial` on the same file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = partial / "text"
    waiting.write_text(text, encoding="utf-8")
    os.replace(waiting, path)
