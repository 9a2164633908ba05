"""From a checkpoint directory of either layout to a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from src.config.schema import LoraConfig
from src.hub import WeightsNotFound, find_directory
from src.policies.adapter_files import check_adapter_directory, check_adapter_fits
from src.policies.checkpoint import check_janus_directory, open_checkpoint
from src.policies.janus import JanusPolicy
from src.policies.weight_files import CheckpointError

# What is downloaded of a repository: weights, configs, tokenizer, chat templates; never code.
PATTERNS = ("*.safetensors", "*.bin", "*.json", "*.jinja")


def find_checkpoint(path: str | Path | None, repository: str | None) -> Path:
    """The checkpoint directory: `path`, or without one `repository` from the Hugging Face cache, else from the hub.

    Raises:
        CheckpointError: naming what is missing or wrong, and what to download or where to point.
    """
    try:
        folder = find_directory("model.path", path, repository, PATTERNS)
    except WeightsNotFound as error:
        raise CheckpointError(str(error)) from error
    try:
        return check_janus_directory(folder)
    except CheckpointError as error:
        if path is not None:
            raise
        raise CheckpointError(
            f"{error} (the local copy of {repository}; if it is incomplete: `hf download {repository}`)"
        ) from error


def resolve_dtype(dtype: str, trains_weights: bool) -> torch.dtype:
    """The dtype to load weights in.

    auto: float32 on a CPU and where the weights themselves are trained, else bfloat16.

    Trained weights are float32 masters: at a learning rate of 1e-6, updates of bf16 weights vanish. The
    matrix products then run in bf16 by the trainer's mixed precision.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    return torch.bfloat16 if torch.cuda.is_available() and not trains_weights else torch.float32


def load_janus(
    path: str | Path | None,
    repository: str | None = None,
    dtype: str = "auto",
    adapter: str | Path | None = None,
    lora: dict[str, Any] | None = None,
    merge_rollout: bool | None = None,
) -> JanusPolicy:
    """The policy of a Janus checkpoint directory of either layout; see `JanusConfig` for the arguments.

    Raises:
        CheckpointError: if the directory is no loadable Janus checkpoint.
        ValueError: if the adapter does not fit it.
    """
    if adapter is not None:
        check_adapter_directory(Path(adapter))
    checkpoint = open_checkpoint(find_checkpoint(path, repository))
    if adapter is not None:
        check_adapter_fits(Path(adapter), {k: v.shape for k, v in checkpoint.weights.items()}, checkpoint.folder)
    trains_weights = lora is None and adapter is None
    return JanusPolicy(
        checkpoint.model(resolve_dtype(dtype, trains_weights)),
        checkpoint.tokenizer,
        lora=None if lora is None else LoraConfig(**lora),
        adapter=None if adapter is None else Path(adapter),
        merge_rollout=merge_rollout,
    )


def quiet() -> None:
    """Silence what third parties print while a checkpoint loads and a user can do nothing about."""
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
