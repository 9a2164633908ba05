"""Pixels as image files hold them, and what they were made of and how in the PNG file itself.

That stands in iTXt chunks, which hold any language's letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

# In this order; each is a chunk of its own. What is no text is written as JSON.
KEYS = (
    "prompt", "plan", "seed", "rollout", "candidate", "model", "adapter", "run", "reward", "scores", "details",
    "best_of", "sampling",
)  # fmt: skip


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [0, 1] as an RGB image of 8 bits, one image pixel a pixel."""
    from PIL import Image

    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().cpu().numpy())


def save_png(path: Path, pixels: Tensor, entry: Mapping[str, Any] | None = None) -> None:
    """Pixels (3, H, W) in [0, 1] as they were decoded, one file pixel a pixel; of `entry` what KEYS name."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    given = entry or {}
    for key in KEYS:
        if given.get(key) is not None:
            value = given[key]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            chunks.add_itxt(key, text)
    to_image(pixels).save(path, format="PNG", pnginfo=chunks)


def read_png(path: Path) -> dict[str, Any]:
    """What `save_png` wrote besides the pixels."""
    from PIL import Image

    with Image.open(path) as image:
        texts: dict[str, str] = getattr(image, "text", {})
    plain = ("prompt", "plan", "model", "adapter", "run")
    return {key: str(texts[key]) if key in plain else json.loads(texts[key]) for key in KEYS if key in texts}
