"""A checkpoint of the drawn world as an ordinary transformers Janus directory: its configuration, how it is saved."""

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

from src.shapes.recipes import ModelSize
from src.shapes.tokens import BOI, IMAGE, PATCH_PIXELS, code_patches, image_tokens
from src.shapes.worlds import SMALL, World

TINY = ModelSize()


def build_config(tokenizer: PreTrainedTokenizerFast, world: World = SMALL, size: ModelSize = TINY) -> JanusConfig:
    """A Janus for a world's words and pictures.

    The vision tower (understanding) is kept minimal: nothing here uses it.
    """
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
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
        image_size=world.image_pixels,
        patch_size=PATCH_PIXELS,
        mlp_ratio=2.0,
        projection_dim=size.hidden,
        num_image_tokens=image_tokens(world),
    )
    picture = JanusVQVAEConfig(
        embed_dim=size.code_width,
        num_embeddings=len(code_patches(world)),
        latent_channels=size.channels,
        base_channels=size.channels,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=0,
        projection_dim=size.hidden,
        image_token_embed_dim=size.hidden,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=picture,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, world: World = SMALL, size: ModelSize = TINY
) -> JanusForConditionalGeneration:
    """That Janus with fresh weights, float32."""
    model = JanusForConditionalGeneration(build_config(tokenizer, world, size)).float()
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
    vision = model.config.vision_config
    side, half = {"height": vision.image_size, "width": vision.image_size}, [0.5, 0.5, 0.5]
    images = JanusImageProcessor(size=side, image_mean=half, image_std=half, min_size=PATCH_PIXELS)
    model.save_pretrained(directory)
    JanusProcessor(images, tokenizer, num_image_tokens=vision.num_image_tokens).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
