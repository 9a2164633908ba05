"""From decoded pixels to a vision tower's input: resizing, padding, cropping, normalising, on the device.

Everything works on float pixels (N, 3, H, W) in [0, 1], row by row and deterministically. The published
preprocessing of all these towers resizes 8-bit images to 8-bit images; here the result is not rounded (at most 1/510
a channel apart).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# OpenAI's CLIP (2103.00020, released code); open_clip's ViT-H/14 and so HPS use the same.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# ImageNet's, which detectors of the DETR family use.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing (as Pillow and torchvision do); may leave [0, 1] at edges, as bicubic does."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)


def fit_inside(pixels: Tensor, side: int) -> Tensor:
    """The longer side becomes `side`, the rest of the square is black: HPSv2's evaluation transform.

    (N, 3, H, W) -> (N, 3, side, side). As released, bicubic overshoot is not clipped.
    """
    height, width = pixels.shape[-2:]
    scale = side / max(height, width)
    resized = resize(pixels, round(height * scale), round(width * scale))
    missing_height, missing_width = side - resized.shape[-2], side - resized.shape[-1]
    left, top = missing_width // 2, missing_height // 2
    return F.pad(resized, (left, missing_width - left, top, missing_height - top))


def fill_and_crop(pixels: Tensor, side: int) -> Tensor:
    """The shorter side becomes `side`, the middle is kept: CLIP's evaluation transform.

    (N, 3, H, W) -> (N, 3, side, side) in [0, 1]: clipped, as 8-bit images are.
    """
    height, width = pixels.shape[-2:]
    if height <= width:
        resized = resize(pixels, side, int(side * width / height))
    else:
        resized = resize(pixels, int(side * height / width), side)
    top, left = round((resized.shape[-2] - side) / 2), round((resized.shape[-1] - side) / 2)
    return resized[..., top : top + side, left : left + side].clamp(0.0, 1.0)


def pad_and_resize(pixels: Tensor, side: int, colour: Sequence[float]) -> Tensor:
    """Padded to a square with `colour` (three channels), then resized: LLaVA's "pad" transform.

    (N, 3, H, W) -> (N, 3, side, side) in [0, 1].
    """
    height, width = pixels.shape[-2:]
    longer = max(height, width)
    if height != width:
        canvas = pixels.new_tensor(colour).view(1, 3, 1, 1).expand(len(pixels), 3, longer, longer).clone()
        top, left = (longer - height) // 2, (longer - width) // 2
        canvas[..., top : top + height, left : left + width] = pixels
        pixels = canvas
    return resize(pixels, side, side).clamp(0.0, 1.0)


def fit_between(pixels: Tensor, shorter: int, longer: int) -> Tensor:
    """The shorter side becomes `shorter`, or less where the longer one would exceed `longer`: DETR's transform.

    (N, 3, H, W) -> (N, 3, h, w), the aspect ratio kept; bilinear, with antialiasing.
    """
    height, width = pixels.shape[-2:]
    short, long = min(height, width), max(height, width)
    if long / short * shorter > longer:
        shorter = round(longer * short / long)
    scaled = int(shorter * long / short)
    size = (shorter, scaled) if height <= width else (scaled, shorter)
    if (height, width) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std, a mean and a standard deviation for each channel."""
    shift, scale = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std))
    return (pixels - shift) / scale
