"""The colour classifier: CLIP's cosine by hand, crops pixel by pixel, batches change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from src.geneval.colors import BATCH, ColorClassifier, crop, load_color_classifier
from src.geneval.detections import Detection
from src.geneval.names import COLORS
from tests.geneval.tiny import clip_folder

CPU = torch.device("cpu")


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def boxes(count: int) -> list[Detection]:
    return [Detection("car", 0.9, (i % 8, i % 5, i % 8 + 12 + i % 3, i % 5 + 10.0)) for i in range(count)]


@pytest.fixture(scope="module")
def classifier() -> ColorClassifier:
    return load_color_classifier(clip_folder(), CPU)


def test_a_crop_is_the_object_on_grey() -> None:
    image = picture()
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[5:15, 10:20] = True
    mask[7, 12] = False
    pixels = np.array(image)
    got = np.array(crop(image, Detection("car", 0.9, (8.4, 4.6, 21.5, 16.4), mask)))
    assert got.shape == (16 - 5, 22 - 8, 3), "PIL rounds halves to even: 21.5 to 22"
    for y in range(got.shape[0]):
        for x in range(got.shape[1]):
            expected = pixels[y + 5, x + 8] if mask[y + 5, x + 8] else [0x99] * 3
            assert list(got[y, x]) == list(expected)


def test_without_a_mask_a_crop_is_the_box() -> None:
    image = picture()
    assert np.array_equal(np.array(crop(image, Detection("car", 0.9, (2, 3, 12, 9)))), np.array(image)[3:9, 2:12])
    assert crop(image, Detection("car", 0.9, (2.1, 3.1, 2.2, 3.2))).size == (1, 1)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        crop(picture(), Detection("car", 0.9, (0, 0, 2, 2), torch.ones(40, 30, dtype=torch.bool)))


def test_the_colour_is_the_nearest_ensemble(classifier: ColorClassifier) -> None:
    """Every text and crop alone, in float64: the mean of three normalised texts, normalised, against the crop."""
    model = CLIPModel.from_pretrained(clip_folder()).double().eval()
    tokenizer, processor = (
        AutoTokenizer.from_pretrained(clip_folder()),
        CLIPImageProcessor.from_pretrained(clip_folder()),
    )
    name, image = "tennis racket", picture(seed=4)

    def unit(vector: torch.Tensor) -> np.ndarray:
        array = vector.detach().numpy().reshape(-1)
        return array / np.sqrt((array**2).sum())

    directions = []
    for color in COLORS:
        texts = [f"a photo of a {color} {name}", f"a photo of a {color}-colored {name}", f"a photo of a {color} object"]
        units = [unit(model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output) for text in texts]
        directions.append(unit(torch.from_numpy(sum(units) / 3)))
    torch.testing.assert_close(classifier.directions(name).double().numpy(), np.stack(directions), atol=1e-5, rtol=0)
    objects, expected = boxes(12), []
    for one in objects:
        pixels = processor(images=crop(image, one), return_tensors="pt")["pixel_values"].double()
        similarity = np.stack(directions) @ unit(model.get_image_features(pixel_values=pixels).pooler_output)
        expected.append(COLORS[int(similarity.argmax())])
    assert classifier(image, name, objects) == expected


def test_batches_change_nothing(classifier: ColorClassifier) -> None:
    image, objects = picture(seed=9), boxes(BATCH * 2 + 3)
    together = classifier(image, "car", objects)
    assert together == [color for one in objects for color in classifier(image, "car", [one])]
    assert len(set(together)) > 1, "one colour for everything would agree with anything"


def test_a_folder_that_is_no_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a CLIPModel checkpoint"):
        load_color_classifier(tmp_path, CPU)
