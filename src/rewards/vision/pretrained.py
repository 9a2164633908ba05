"""Finds the directory of a published transformers model and checks its kind."""

from __future__ import annotations

import json
from pathlib import Path

from src.hub import find_directory
from src.rewards.vision.weights import MODEL_FILES, WeightsMismatch


def find_pretrained(kind: str, path: str | Path | None, repository: str | None) -> Path:
    """The directory `path`, or without one the snapshot of `repository`, of a model whose model_type is `kind`.

    transformers also reads the config of another kind, and leaves missing parts at their initial values.

    Raises:
        WeightsNotFound: if the directory cannot be found.
        WeightsMismatch: if it is not a model of this kind.
    """
    folder = find_directory("path", path, repository, MODEL_FILES)
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsMismatch(f"{config}: cannot be read ({error}); path must be a model's directory") from error
    found = content.get("model_type") if isinstance(content, dict) else None
    if found != kind:
        raise WeightsMismatch(f"{config}: model_type is {found!r}, expected {kind!r}; give another directory as path")
    return folder
