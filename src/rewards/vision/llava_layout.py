"""LLaVA-NeXT's original checkpoint layout (its code's names), loaded into transformers' LLaVA-OneVision."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.rewards.vision.weights import WeightsMismatch, load_exactly

# google/siglip-so400m-patch14-384 as LLaVA-NeXT uses it: the original's 27th layer and its head are dropped.
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
# Assumptions of the code below, as the published config.json states them.
_EXPECTED = {
    "mm_vision_tower": re.compile(r".*siglip-so400m-patch14-384"),
    "mm_projector_type": re.compile(r"mlp2x_gelu"),
    "mm_patch_merge_type": re.compile(r"spatial_unpad"),
}
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "hidden_act",
    "tie_word_embeddings",
)
# To the names of the published llava-hf checkpoints, from where every transformers 5 maps on to its own.
_RULES = (
    (re.compile(r"model\.vision_tower\.vision_tower\."), "vision_tower."),
    (re.compile(r"model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"model\.image_newline$"), "image_newline"),
    (re.compile(r"model\.(?=embed_tokens\.|layers\.|norm\.)"), "language_model.model."),
    (re.compile(r"lm_head\."), "language_model.lm_head."),
)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LLaVA-NeXT's state dict by the names of the published llava-hf checkpoints.

    Rotary tables that old code saved are left out (they follow from the config). A name that does not belong to LLaVA
    is kept unchanged, so that loading lists it as left over.
    """
    return {_renamed(key): tensor for key, tensor in state.items() if not key.endswith(".rotary_emb.inv_freq")}


def load_llava(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """LlavaOnevisionForConditionalGeneration from a directory in LLaVA-NeXT's layout.

    config: of `llava_config`.

    Raises:
        WeightsMismatch: naming the weights that do not fit.
    """
    from safetensors.torch import load_file
    from transformers import LlavaOnevisionForConditionalGeneration

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsMismatch(f"{folder}: no *.safetensors weights in it")
    state = {key: tensor for file in files for key, tensor in load_file(file).items()}
    if config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    return load_exactly(LlavaOnevisionForConditionalGeneration, config, to_transformers(state), dtype, folder)


def llava_config(file: Path, vision: Mapping[str, int]) -> Any:
    """transformers' config of the model that LLaVA-NeXT's config.json describes.

    vision: sizes of the vision tower, which that file only names, by the names of SiglipVisionConfig.

    Raises:
        WeightsMismatch: naming the key that shows it is another kind of model.
    """
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsMismatch(f"{file}: cannot be read ({error}); expected LLaVA-NeXT's config.json") from error
    for key, pattern in _EXPECTED.items():
        if not pattern.fullmatch(str(raw.get(key))):
            raise WeightsMismatch(f"{file}: {key} is {raw.get(key)!r}, expected {pattern.pattern}")
    text = {key: raw[key] for key in _TEXT_KEYS if key in raw}
    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**text).to_dict(),
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False).to_dict(),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def _renamed(key: str) -> str:
    for pattern, replacement in _RULES:
        if pattern.match(key):
            return pattern.sub(replacement, key, count=1)
    return key
