"""Tiny checkpoints of the real classes, randomly initialised, for the scorer's model paths."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

# Removed when the test session ends.
_HOME = tempfile.TemporaryDirectory(prefix="bicot-geneval-")


@cache
def detector_folder(num_labels: int = 80) -> Path:
    """A Mask2Former with a Swin backbone whose classes and masks are spread."""
    folder = Path(_HOME.name) / f"detector-{num_labels}"
    torch.manual_seed(3)
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=num_labels,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.normal_(std=2.0)
    model.save_pretrained(folder)
    return folder


@cache
def clip_folder() -> Path:
    """A CLIP of 8 x 8 pixels, its tokenizer over printable characters, its image processor."""
    folder = Path(_HOME.name) / "clip"
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)
    shared = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    start, end = len(words) - 2, len(words) - 1
    ends = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config=shared | ends | {"vocab_size": len(words), "max_position_embeddings": 77},
        vision_config=shared | {"image_size": 8, "patch_size": 4},
        projection_dim=10,
        initializer_factor=5.0,  # embeddings that differ from image to image
    )
    torch.manual_seed(6)
    model = CLIPModel(config)
    with torch.no_grad():  # the class token says less, the patches more: crops then differ in colour
        model.vision_model.embeddings.class_embedding.zero_()
        model.vision_model.embeddings.position_embedding.weight.zero_()
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.out_proj.weight.mul_(100)
    model.save_pretrained(folder)
    return folder
