"""The image processor's settings of a checkpoint, in the files of the other layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.policies.checkpoint import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, JanusCheckpoint, read_tokenizer
from src.policies.weight_files import read_json

SHARED = ("do_normalize", "image_mean", "image_std", "min_size", "rescale_factor", "background_color")
# What the released Janus-Pro checkpoints say; stands in where a base says nothing.
DEFAULTS: dict[str, Any] = {
    "background_color": [127, 127, 127],
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_size": 14,
    "rescale_factor": 1 / 255,
}


def write_original_processor(base: JanusCheckpoint, out: Path) -> None:
    """``preprocessor_config.json`` and ``processor_config.json`` as the released ``VLChatProcessor`` reads them."""
    images = _settings(base.folder) | {
        "image_processor_type": "VLMImageProcessor",
        "image_size": base.config.vision_config.image_size,
        "processor_class": "VLChatProcessor",
    }
    chat = {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": IMAGE,
        "mask_prompt": True,
        "num_image_tokens": base.config.vision_config.num_image_tokens,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek",
    }
    for name, content in (("preprocessor_config.json", images), ("processor_config.json", chat)):
        (out / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_transformers_processor(base: JanusCheckpoint, out: Path) -> None:
    """What transformers' `JanusProcessor` reads, the tokenizer's files with the image tokens' roles among them."""
    from transformers import JanusImageProcessor, JanusProcessor

    roles = {"image_token": IMAGE, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE}
    tokenizer = read_tokenizer(base.folder, extra_special_tokens=roles)
    vision = base.config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    images = JanusImageProcessor(**_settings(base.folder), size=size)
    JanusProcessor(images, tokenizer, num_image_tokens=vision.num_image_tokens).save_pretrained(out)


def _settings(folder: Path) -> dict[str, Any]:
    """The settings both layouts share, of whichever file has them."""
    found: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            nested = content.get("image_processor")
            found |= nested if isinstance(nested, dict) else content
    return {key: found.get(key, DEFAULTS[key]) for key in SHARED}
