"""Pictures for the networks, against the networks' own processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from src.rewards.images import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre_square,
    normalised,
    resized,
    size_within,
)

# Their processors resize 8-bit pictures and round to 8 bits; a cubic filter rounds twice, once a direction.
ROUNDING = 2 / 255


def picture(height: int, width: int) -> tuple[torch.Tensor, Image.Image]:
    """The same noise as pixels (1, 3, H, W) and as an 8-bit picture."""
    eight_bit = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return eight_bit.permute(2, 0, 1)[None] / 255, Image.fromarray(np.asarray(eight_bit))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((384, 384), (800, 800)),
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((100, 400), (333, 1332)),
        ((400, 100), (1332, 333)),
        ((800, 1000), (800, 1000)),
    ],
)
def test_sizes_within_800_and_1333(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert size_within(*size, 800, 1333) == expected


@pytest.mark.parametrize("size", [(48, 48), (60, 80), (150, 100)])
def test_the_detectors_picture_is_its_processors(size: tuple[int, int]) -> None:
    """Enlarged and reduced."""
    pixels, image = picture(*size)
    short, long = (96, 200) if size[0] < 100 else (64, 90)
    theirs = GroundingDinoImageProcessorPil(size={"shortest_edge": short, "longest_edge": long})
    expected = theirs(images=image, return_tensors="pt").pixel_values
    ours = normalised(resized(pixels, size_within(*size, short, long), "bilinear"), IMAGENET_MEAN, IMAGENET_STD)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=0, atol=ROUNDING / min(IMAGENET_STD))


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (40, 56), (70, 50)])
def test_the_questioners_picture_is_its_processors(size: tuple[int, int]) -> None:
    pixels, image = picture(*size)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = theirs(images=image, return_tensors="pt").pixel_values
    ours = normalised(centre_square(pixels, 32, "bicubic"), CLIP_MEAN, CLIP_STD)
    assert ours.shape == expected.shape == (1, 3, 32, 32)
    torch.testing.assert_close(ours, expected, rtol=0, atol=ROUNDING / min(CLIP_STD))


def test_a_cubic_filter_does_not_leave_the_range() -> None:
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1.0
    raw = torch.nn.functional.interpolate(edge, (19, 19), mode="bicubic", antialias=True)
    assert raw.max() > 1, "else this shows nothing"
    bounded = resized(edge, (19, 19), "bicubic")
    assert bounded.min() == 0
    assert bounded.max() == 1


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    pixels = torch.rand(2, 3, 16, 16)
    assert resized(pixels, (16, 16), "bicubic") is pixels
    assert torch.equal(centre_square(pixels, 16, "bicubic"), pixels)
