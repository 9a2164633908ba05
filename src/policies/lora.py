"""LoRA on the language model of a Janus: attach, load, save (PEFT's own format)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_NAME = "default"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Rank, scale (alpha / r), dropout and the projections that get an adapter (LoRA, arXiv 2106.09685)."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[str] = PROJECTIONS


def target_pattern(targets: Sequence[str]) -> str:
    """A pattern that hits the language model's projections only, never the vision tower's of the same name."""
    unknown = sorted(set(targets) - set(PROJECTIONS))
    if unknown:
        raise ValueError(f"model.lora.targets: unknown {', '.join(unknown)}; known are {', '.join(PROJECTIONS)}")
    return rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(targets)})"


def attach_lora(model: nn.Module, settings: LoraSettings) -> PeftModel:
    """Freeze `model` and put fresh, trainable adapters (B = 0: no change yet) on its language model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=target_pattern(settings.targets),
        bias="none",
    )
    return get_peft_model(model, config)  # type: ignore[arg-type, return-value]


def load_lora(model: nn.Module, path: Path, trainable: bool = True) -> PeftModel:
    """Put the adapter saved at `path` on `model`.

    Raises:
        ValueError: if `path` holds no adapter or one whose keys or shapes do not fit `model`.
    """
    from peft import PeftModel

    if not (path / "adapter_config.json").is_file():
        raise ValueError(f"model.adapter={path}: no adapter_config.json there; give a folder written by PEFT")
    try:
        peft_model = PeftModel.from_pretrained(model, str(path), is_trainable=trainable)  # type: ignore[arg-type]
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"model.adapter={path}: does not fit the base model: {error}") from error
    return peft_model


def save_lora(model: PeftModel, path: Path) -> None:
    """Write the adapter (adapter_config.json, adapter_model.safetensors) to the folder `path`."""
    model.save_pretrained(str(path))
