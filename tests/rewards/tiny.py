"""Tiny, randomly initialised networks of the real classes, saved as published ones are: config, weights, tokenizer."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GitConfig,
    GitForCausalLM,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SwinConfig,
)

# GroundingDINO knows its marks by the ids they have in BERT's vocabulary.
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
WORDS = ("yes", "no", "dog", "hot", "cat", "red", "blue", "left", "chair")
SIZE = 1100


def vocabulary() -> dict[str, int]:
    """A WordPiece vocabulary that spells every English word: letters, digits, a few whole words."""
    signs = [*string.ascii_lowercase, *string.digits, "'", "-", ",", "&", "/"]
    pieces = [*signs, *(f"##{sign}" for sign in string.ascii_lowercase + string.digits), *WORDS]
    ids = dict(BERT_IDS)
    ids |= {piece: 200 + place for place, piece in enumerate(pieces)}
    taken = set(ids.values())
    return ids | {f"[unused{i}]": i for i in range(SIZE) if i not in taken}


def tokenizer() -> BertTokenizer:
    """A lower-casing BERT tokenizer over `vocabulary`."""
    return BertTokenizer(vocab=vocabulary())


@cache
def grounding_dino_directory() -> Path:
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
    return _saved(model)


@cache
def git_directory() -> Path:
    """A GIT whose answers differ between pictures and questions."""
    torch.manual_seed(12)
    model = GitForCausalLM(
        GitConfig(
            vision_config={
                "image_size": 32,
                "patch_size": 16,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            vocab_size=SIZE,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
    )
    return _saved(model)


def _saved(model: torch.nn.Module) -> Path:
    folder = Path(mkdtemp(prefix="tiny-"))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
