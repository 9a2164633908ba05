"""The detector on a tiny GroundingDINO directory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

from src.rewards.experts.detector import Detector
from src.values import ObjectCount, PromptRecord, SpatialRelation
from tests.rewards.tiny_experts.bert import SIZE, bert_tokenizer

EXPERT, SIDE = Detector, 24


def records(count: int) -> list[PromptRecord]:
    """Prompts about relations, counts and objects in turn, with captions of different lengths."""
    kinds = [
        PromptRecord("a dog near a cat", "spatial", ("dog", "cat"), spatial=SpatialRelation("dog", "cat", "near")),
        PromptRecord("two hot dogs", "numeracy", ("hot dog",), counts=(ObjectCount("hot dog", 2),)),
        PromptRecord("a red chair by a zebra", "color", ("chair", "zebra"), ("red chair", "zebra")),
    ]
    return [kinds[i % 3] for i in range(count)]


def write(folder: Path) -> dict[str, object]:
    """A GroundingDINO whose phrase probabilities and boxes are spread over their ranges."""
    torch.manual_seed(11)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=SIZE,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            initializer_range=0.5,
        ),
        d_model=64,  # 32 groups are normalised over their channels and, on the coarsest level, one place
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        max_text_len=64,
    )
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # As initialised, the heads shift no box, images and captions hardly mix, and nothing depends on pixels.
            if "bbox_embed" in name or name.endswith(("vision_param", "text_param")):
                weight.normal_(std=0.1)
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return {"path": folder, "batch_size": 5, "box_threshold": 0.9, "short_side": 64, "long_side": 96}
