"""CLIPScore on a tiny CLIP directory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from src.rewards.experts.clip_score import ClipScore
from tests.rewards.tiny_experts.text import clip_tokenizer, prompts

EXPERT, SIDE, records = ClipScore, 12, prompts


def write(folder: Path) -> dict[str, object]:
    tokenizer = clip_tokenizer(folder)
    shared = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    ends = {"bos_token_id": 516, "eos_token_id": 517, "pad_token_id": 517}
    config = CLIPConfig(
        text_config=shared | ends | {"vocab_size": 518, "max_position_embeddings": 16},
        vision_config=shared | {"image_size": 8, "patch_size": 4},
        projection_dim=10,
        initializer_factor=5.0,  # embeddings that differ from image to image
    )
    torch.manual_seed(6)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return {"path": folder, "batch_size": 5}
