"""Mask2Former (arXiv 2112.01527) as GenEval's object detector: pixels in, detections of COCO's 80 classes out.

Sizes, normalisation, padding and the reading of the outputs are those of the mmdetection config the released scorer
runs (mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco). transformers' own image processor is not used: it stretches
an image to multiples of 32, where mmdetection keeps its proportions and pads, and its `post_process` gives each
pixel to one object, where mmdetection scores every mask by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from src.geneval.detections import Detection
from src.geneval.names import OBJECTS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SHORT_SIDE, LONG_SIDE, STRIDE = 800, 1333, 32
MOST = 100  # detections of an image at most, over all classes


class Detector:
    """Finds objects in images with a `Mask2FormerForUniversalSegmentation` of 80 classes.

    Args:
        model: in evaluation mode, on the device to compute on.
        floor: detections with a score of this or less are left out, which saves their masks.
        short_side, long_side: images are scaled, in proportion, until one of the two is reached.

    Raises:
        ValueError: for a model of another number of classes.
    """

    def __init__(
        self, model: Any, floor: float = 0.0, short_side: int = SHORT_SIDE, long_side: int = LONG_SIDE
    ) -> None:
        if model.config.num_labels != len(OBJECTS):
            raise ValueError(
                f"the detector knows {model.config.num_labels} classes, GenEval needs COCO's {len(OBJECTS)} things:"
                " take a checkpoint for COCO instance segmentation"
            )
        self.model, self.floor = model, floor
        self.short_side, self.long_side = short_side, long_side

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """What is in each RGB image; images of one size go through the model together, and no result depends on it."""
        found: list[list[Detection]] = [[] for _ in images]
        sizes = [image.size for image in images]
        for size in dict.fromkeys(sizes):
            rows = [row for row, other in enumerate(sizes) if other == size]
            for row, detections in zip(rows, self._of_one_size([images[row] for row in rows]), strict=True):
                found[row] = detections
        return found

    def _of_one_size(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        device = self.model.device
        pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).to(device).permute(0, 3, 1, 2)
        size = (pixels.shape[2], pixels.shape[3])
        scaled = self._scaled_size(*size)
        inputs = F.interpolate(pixels.float(), scaled, mode="bilinear", align_corners=False) / 255
        mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in (MEAN, STD))
        inputs = F.pad((inputs - mean) / std, (0, -scaled[1] % STRIDE, 0, -scaled[0] % STRIDE))
        output = self.model(pixel_values=inputs.to(self.model.dtype))
        return [
            read_instances(classes.float(), masks.float(), self.floor, inputs.shape[-2:], scaled, size)
            for classes, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        ]

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        factor = min(self.long_side / max(height, width), self.short_side / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def read_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    floor: float,
    padded: tuple[int, int] | torch.Size,
    scaled: tuple[int, int],
    size: tuple[int, int],
) -> list[Detection]:
    """The detections in one image's outputs, in no particular order.

    A query may be several objects: each of the `MOST` best (query, class) pairs is one, its score the class'
    probability times the mean probability of its mask's pixels (Mask2Former, section 4; detectron2's instance
    inference). Its mask is where the logit is positive, its box the mask's extent, whose right and bottom are
    exclusive.

    class_logits: (Q, 81), the last is "no object". mask_logits: (Q, h, w). padded, scaled, size: (height, width)
    of the model's input, of the image within it, and of the image itself, which masks and boxes are of.
    """
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    best, places = probabilities.topk(min(MOST, len(probabilities)))
    # A mask's mean is at most 1, so that a pair at or below the floor stays there.
    places = places[best > floor]
    queries, labels = places // len(OBJECTS), places % len(OBJECTS)
    detections = []
    for query in queries.unique().tolist():
        logits = F.interpolate(mask_logits[None, None, query], tuple(padded), mode="bilinear", align_corners=False)
        logits = logits[..., : scaled[0], : scaled[1]]
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0]
        mask = logits > 0
        if not mask.any():
            continue
        sureness = (logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = (float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1)
        kept = mask.cpu()
        for place, label in zip(places[queries == query], labels[queries == query].tolist(), strict=True):
            score = min(float(probabilities[place] * sureness), 1.0)
            if score > floor:
                detections.append(Detection(OBJECTS[label], score, box, kept))
    return detections


def load_detector(folder: Path, device: torch.device, floor: float) -> Detector:
    """The detector of a checkpoint directory in transformers' format.

    Raises:
        ValueError: if it cannot be loaded, lacks weights or has other classes.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    from src.geneval.weights import load_model

    return Detector(load_model("detector", Mask2FormerForUniversalSegmentation, folder, device), floor)
