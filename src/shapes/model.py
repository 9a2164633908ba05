"""The embedded checkpoint as an ordinary transformers Janus directory: its sizes, how it is saved."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from src.shapes.scenes import IMAGE_PIXELS
from src.shapes.tokens import BOI, IMAGE, IMAGE_TOKENS, PATCH_PIXELS, code_patches

HIDDEN = 128


def build_config(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    """Sizes of the tiny Janus. The vision tower (understanding) is kept minimal: nothing here uses it."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        mlp_ratio=2.0,
        projection_dim=HIDDEN,
        num_image_tokens=IMAGE_TOKENS,
    )
    picture = JanusVQVAEConfig(
        embed_dim=16,
        num_embeddings=len(code_patches()),
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=0,
        projection_dim=HIDDEN,
        image_token_embed_dim=HIDDEN,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=picture,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> JanusForConditionalGeneration:
    """The tiny Janus with fresh weights, float32."""
    model = JanusForConditionalGeneration(build_config(tokenizer)).float()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(BOI)},
    )
    return model


def save_checkpoint(
    model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: str | Path
) -> None:
    """Write everything `from_pretrained` of model, tokenizer and `JanusProcessor` reads."""
    half = [0.5, 0.5, 0.5]
    images = JanusImageProcessor(
        size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}, image_mean=half, image_std=half, min_size=PATCH_PIXELS
    )
    model.save_pretrained(directory)
    JanusProcessor(images, tokenizer, num_image_tokens=IMAGE_TOKENS).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
