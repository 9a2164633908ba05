"""Pixels as image files hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [0, 1] as an RGB image of 8 bits, one image pixel a pixel."""
    from PIL import Image

    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().cpu().numpy())
