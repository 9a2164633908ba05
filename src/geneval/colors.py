"""The colour of a detected object, by CLIP (arXiv 2103.00020) as a zero-shot classifier over ten colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from src.geneval.detections import Detection
from src.geneval.names import COLORS

# The released scorer's; a colour's embedding is the mean over the three.
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GREY = (0x99, 0x99, 0x99)
BATCH = 16  # crops the model sees at once


class ColorClassifier:
    """Names the colours of objects with a `CLIPModel`.

    Args:
        model: in evaluation mode, on the device to compute on.
        tokenizer, processor: the checkpoint's own; the processor makes pixel values of PIL images.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self._directions: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, image: Image.Image, name: str, objects: Sequence[Detection]) -> list[str]:
        """The colour of each of `objects`, all of class `name`, in an RGB image."""
        if name not in self._directions:
            self._directions[name] = self.directions(name)
        directions = self._directions[name]
        colors: list[str] = []
        for start in range(0, len(objects), BATCH):
            crops = [crop(image, detection) for detection in objects[start : start + BATCH]]
            pixels = self.processor(images=crops, return_tensors="pt")["pixel_values"].to(self.model.device)
            features = self.model.get_image_features(pixel_values=pixels).pooler_output
            # Scaling a crop's features changes no order among colours: they need no normalisation.
            colors += [COLORS[index] for index in (features @ directions.T).argmax(1).tolist()]
        return colors

    @torch.inference_mode()
    def directions(self, name: str) -> Tensor:
        """(10, D): for each colour the normalised mean of its templates' normalised embeddings."""
        texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
        features = self.model.get_text_features(**tokens).pooler_output
        means = F.normalize(features, dim=-1).view(len(COLORS), len(TEMPLATES), -1).mean(1)
        return F.normalize(means, dim=-1)


def crop(image: Image.Image, detection: Detection) -> Image.Image:
    """The object's box cut out of an RGB image; with a mask, all but the object is grey (#999).

    A box is rounded as PIL rounds it, to at least one pixel.

    Raises:
        ValueError: if the mask is not of the image's size.
    """
    if detection.mask is not None:
        if tuple(detection.mask.shape) != (image.height, image.width):
            raise ValueError(
                f"mask {tuple(detection.mask.shape)} of an image of (height, width) {(image.height, image.width)}"
            )
        mask = Image.fromarray(detection.mask.numpy())
        image = Image.composite(image, Image.new("RGB", image.size, GREY), mask)
    left, top, right, bottom = (round(edge) for edge in detection.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def load_color_classifier(folder: Path, device: torch.device) -> ColorClassifier:
    """The classifier of a CLIP checkpoint directory in transformers' format.

    Raises:
        ValueError: if it cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    from src.geneval.weights import load_model

    model = load_model("clip", CLIPModel, folder, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"clip={folder}: no tokenizer or image processor in it ({error})") from error
    return ColorClassifier(model, tokenizer, processor)
