"""Policies of the published Janus-Pro sizes without their weights: on the meta device, which holds no data."""

from __future__ import annotations

from typing import Any

import torch

from tests.policies.tiny import templated_tokenizer

# hidden, layers, heads, intermediate of the language model (config.json of Janus-Pro-1B and -7B).
SIZES = {"1B": (2048, 24, 16, 5632), "7B": (4096, 30, 32, 11008)}


def published_policy(size: str, lora: bool = True, dtype: torch.dtype | None = None, rank: int = 16) -> Any:
    """A `JanusPolicy`; LoRA on a bf16 base, or float32 masters, unless `dtype` says otherwise."""
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    from src.config.schema import LoraConfig
    from src.policies.janus import JanusPolicy

    hidden, layers, heads, intermediate = SIZES[size]
    config = JanusConfig(
        text_config=LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=intermediate,
            vocab_size=102400,
            max_position_embeddings=16384,
        ),
        vision_config=JanusVisionConfig(image_size=384, projection_dim=hidden),  # SigLIP-L/16: the class's defaults
        vq_config=JanusVQVAEConfig(num_patches=24, projection_dim=hidden, image_token_embed_dim=hidden),
        image_token_id=100581,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        janus = JanusForConditionalGeneration(config).to(dtype or (torch.bfloat16 if lora else torch.float32)).eval()
        return JanusPolicy(janus, templated_tokenizer(), lora=LoraConfig(r=rank) if lora else None)
