"""A published transformers model with its tokenizer, checked to be the one that is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.hub import find_directory
from src.rewards.weights import MODEL_FILES, WeightsMismatch, as_dtype, check_fit


def load_pretrained(
    model_class: type[Any], path: str | Path | None, repository: str | None, dtype: str
) -> tuple[Any, Any]:
    """The model and the tokenizer of the directory `path`, or without one of `repository`.

    Raises:
        ValueError: for an unknown dtype.
        WeightsNotFound: if the directory is not to be had.
        WeightsMismatch: if it holds another kind of model, or not every weight: nothing is left as initialised.
    """
    from transformers import AutoTokenizer

    computes_in = as_dtype(dtype)
    folder = find_directory("path", path, repository, MODEL_FILES)
    _check_kind(folder, model_class.config_class.model_type)
    try:
        model, report = model_class.from_pretrained(
            folder, dtype=computes_in, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise WeightsMismatch(f"{folder}: cannot be loaded: {type(error).__name__}: {error}") from error
    check_fit(folder, report["missing_keys"])
    return model, tokenizer


def _check_kind(folder: Path, kind: str) -> None:
    """Raise WeightsMismatch unless the folder's config.json is of a model of this kind."""
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsMismatch(f"{config}: cannot be read ({error}); path must be a model's directory") from error
    found = content.get("model_type") if isinstance(content, dict) else None
    if found != kind:
        raise WeightsMismatch(f"{config}: model_type is {found!r}, expected {kind!r}; give another directory as path")
