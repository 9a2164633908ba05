"""HPS on a tiny CLIP in open_clip's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from src.rewards.experts.hps import HPS
from src.rewards.vision.clip_layout import ClipSizes
from tests.rewards.tiny_experts.text import clip_tokenizer, prompts

EXPERT, SIDE, records = HPS, 12, prompts

# Widths and heads of the two towers differ, so that mixing them up cannot go unnoticed.
SIZES = ClipSizes(
    embedding=10,
    image_size=8,
    patch_size=4,
    vision_width=24,
    vision_layers=2,
    vision_heads=3,
    text_width=16,
    text_layers=3,
    text_heads=2,
    vocabulary=518,
    context_length=16,
)


def open_clip_shapes(sizes: ClipSizes) -> dict[str, tuple[int, ...]]:
    """Every key of open_clip's CLIP of these sizes, with its shape."""
    patches = (sizes.image_size // sizes.patch_size) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (sizes.context_length, sizes.text_width),
        "text_projection": (sizes.text_width, sizes.embedding),
        "logit_scale": (),
        "visual.class_embedding": (sizes.vision_width,),
        "visual.positional_embedding": (patches + 1, sizes.vision_width),
        "visual.proj": (sizes.vision_width, sizes.embedding),
        "visual.conv1.weight": (sizes.vision_width, 3, sizes.patch_size, sizes.patch_size),
        "token_embedding.weight": (sizes.vocabulary, sizes.text_width),
    }
    norms = {"visual.ln_pre": sizes.vision_width, "visual.ln_post": sizes.vision_width, "ln_final": sizes.text_width}
    for tower, width, layers in (
        ("visual.transformer", sizes.vision_width, sizes.vision_layers),
        ("transformer", sizes.text_width, sizes.text_layers),
    ):
        for layer in range(layers):
            block = f"{tower}.resblocks.{layer}"
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                f"{block}.attn.out_proj.weight": (width, width),
                f"{block}.attn.out_proj.bias": (width,),
                f"{block}.mlp.c_fc.weight": (4 * width, width),
                f"{block}.mlp.c_fc.bias": (4 * width,),
                f"{block}.mlp.c_proj.weight": (width, 4 * width),
                f"{block}.mlp.c_proj.bias": (width,),
            }
    for norm, width in norms.items():
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes


def open_clip_state(sizes: ClipSizes = SIZES) -> dict[str, Tensor]:
    """Random weights, large enough that attention and activations are far from linear."""
    generator = torch.Generator().manual_seed(1)
    return {key: 0.4 * torch.randn(shape, generator=generator) for key, shape in open_clip_shapes(sizes).items()}


def write(folder: Path) -> dict[str, object]:
    torch.save({"state_dict": open_clip_state()}, folder / "hps.pt")
    clip_tokenizer(folder / "tokenizer")
    return {"path": folder / "hps.pt", "tokenizer": folder / "tokenizer", "sizes": SIZES, "batch_size": 5}
