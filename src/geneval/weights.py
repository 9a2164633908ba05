"""Frozen models from checkpoint directories, with one message for whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_model(key: str, model_class: Any, folder: Path, device: torch.device) -> Any:
    """A float32 model in evaluation mode on `device`; `key` names it in messages.

    Raises:
        ValueError: if it cannot be loaded, or weights are missing, which transformers would fill with noise.
    """
    try:
        model, report = model_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise ValueError(
            f"{key}={folder}: not a {model_class.__name__} checkpoint ({type(error).__name__}: {reason})"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{key}={folder}: {len(missing)} weights are missing, such as {missing[0]}")
    return model.to(device).eval()
