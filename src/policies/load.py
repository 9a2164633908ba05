"""From a checkpoint directory to a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from src.policies.janus import JanusPolicy
from src.policies.lora import LoraSettings, check_adapter_directory, check_adapter_fits


class CheckpointError(ValueError):
    """A checkpoint directory is missing, damaged or of another family; the message names path and fix."""


def check_janus_directory(path: str | Path) -> Path:
    """The directory at `path`, checked to look like a Janus checkpoint before any weight is read.

    Raises:
        CheckpointError: naming what is missing or wrong.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"model.path={path}: no such directory; give a Janus checkpoint in transformers' format")
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        kind = content.get("model_type") if isinstance(content, dict) else None
    except FileNotFoundError:
        raise CheckpointError(f"{config}: not found; model.path must be a checkpoint directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config}: not valid JSON ({error}); the checkpoint is damaged") from None
    if kind != "janus":
        raise CheckpointError(f"{config}: model_type is {kind!r}, expected 'janus'")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: no *.safetensors weights in it")
    return folder


def find_checkpoint(path: str | Path | None, repository: str | None) -> Path:
    """The checkpoint directory: `path`, or without one `repository` in the local Hugging Face cache.

    Nothing is downloaded. Raises CheckpointError naming what to download or where to point.
    """
    if path is not None:
        return check_janus_directory(path)
    if repository is None:
        raise CheckpointError("model.path: not set; give a Janus checkpoint in transformers' format")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return check_janus_directory(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, CheckpointError) as error:
        raise CheckpointError(
            f"the weights of {repository} are not at hand: download them (`hf download {repository}`)"
            " or give their directory as model.path=DIR"
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
    """The policy of a Janus checkpoint directory; see `JanusConfig` for the arguments.

    Raises:
        CheckpointError: if the directory is no loadable Janus checkpoint.
        ValueError: if the adapter does not fit it.
    """
    folder = find_checkpoint(path, repository)
    if adapter is not None:
        check_adapter_directory(Path(adapter))
        check_adapter_fits(Path(adapter), folder)
    from transformers import AutoTokenizer, JanusForConditionalGeneration

    trains_weights = lora is None and adapter is None
    try:
        # Without this, a config that leaves the key out is read as tied (transformers' default), and
        # Janus-Pro's own lm_head would be overwritten by the embeddings.
        janus, report = JanusForConditionalGeneration.from_pretrained(
            folder,
            dtype=resolve_dtype(dtype, trains_weights),
            local_files_only=True,
            tie_word_embeddings=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"model.path={folder}: cannot be loaded: {type(error).__name__}: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise CheckpointError(f"model.path={folder}: {len(missing)} weights are missing: {shown}")
    return JanusPolicy(
        janus,
        tokenizer,
        lora=None if lora is None else LoraSettings(**lora),
        adapter=None if adapter is None else Path(adapter),
        merge_rollout=merge_rollout,
    )
