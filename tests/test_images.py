"""Pixels become image files exactly."""

from __future__ import annotations

import numpy as np
import torch

from src.images import to_image


def test_each_pixel_is_rounded_to_its_byte() -> None:
    pixels = torch.tensor([0.0, 1.0, 0.5, 1 / 255, 0.4999 / 255, 0.5001 / 255]).expand(3, 2, 6) * torch.tensor(
        [1.0, 0.0, 1.0]
    ).view(3, 1, 1)
    image = to_image(pixels)
    assert (image.size, image.mode) == ((6, 2), "RGB")
    assert np.array(image)[1].tolist() == [[v, 0, v] for v in (0, 255, 128, 1, 0, 1)]
