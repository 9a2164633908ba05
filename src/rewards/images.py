"""Pictures as vision networks want them: pure functions of float pixels, on the pixels' own device.

They replace the networks' processors, which go through 8-bit pictures on the CPU; the two differ by that
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std by channel; pixels (N, 3, H, W)."""
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)


def size_within(height: int, width: int, short_side: int, long_side: float = math.inf) -> tuple[int, int]:
    """The size with the same aspect ratio whose short side is `short_side`, or less to keep within `long_side`."""
    short, long = min(height, width), max(height, width)
    if long / short * short_side > long_side:
        short_side = round(long_side * short / long)
    scaled = int(short_side * long / short)
    return (short_side, scaled) if height <= width else (scaled, short_side)


def resized(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1] resized to (N, 3, *size), still in [0, 1].

    mode: "bilinear" or "bicubic", with antialiasing as in Pillow, whose filters the networks were trained on: first
    along the width, then along the height, and within the range after each, for a cubic filter overshoots.
    """
    for step in ((pixels.shape[-2], size[1]), size):
        if tuple(pixels.shape[-2:]) != step:
            pixels = torch.nn.functional.interpolate(pixels, step, mode=mode, antialias=True).clamp(0.0, 1.0)
    return pixels


def centre_square(pixels: Tensor, side: int, mode: str) -> Tensor:
    """The short side resized to `side`, then the square in the middle: (N, 3, side, side)."""
    height, width = size_within(*pixels.shape[-2:], side)
    pixels = resized(pixels, (height, width), mode)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[..., top : top + side, left : left + side]
