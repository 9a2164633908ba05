"""The aesthetic predictor on a tiny CLIP tower of timm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from torch import Tensor

from src.rewards.experts.aesthetic import Aesthetic
from tests.rewards.tiny_experts.text import prompts

EXPERT, SIDE, records = Aesthetic, 12, prompts
TOWER, WIDTH = "tiny_clip_quickgelu", 12
# (out, in) of the released predictor's linear layers; the first reads the embedding.
RELEASED = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
TINY = {0: (9, WIDTH), 2: (8, 9), 4: (7, 8), 6: (6, 7), 7: (1, 6)}


@register_model
def tiny_clip_quickgelu(**arguments: Any) -> Any:
    """The tower of the default, small."""
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return timm.create_model("vit_large_patch14_clip_quickgelu_224", **arguments, **sizes)


def predictor(shapes: dict[int, tuple[int, int]]) -> dict[str, Tensor]:
    """Random linear layers by the released names."""
    generator = torch.Generator().manual_seed(4)
    state = {}
    for place, (outputs, inputs) in shapes.items():
        state[f"layers.{place}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        state[f"layers.{place}.bias"] = torch.randn(outputs, generator=generator)
    return state


def tower_state() -> dict[str, Tensor]:
    """Random weights by timm's names."""
    torch.manual_seed(5)
    tower = timm.create_model(TOWER, num_classes=WIDTH)
    return {key: 0.4 * torch.randn_like(value) for key, value in tower.state_dict().items()}


def write(folder: Path) -> dict[str, object]:
    torch.save(predictor(TINY), folder / "predictor.pth")
    save_file(tower_state(), folder / "tower.safetensors")
    return {"path": folder / "predictor.pth", "tower_path": folder / "tower.safetensors", "tower": TOWER}
