"""The detector: outputs read as mmdetection reads them, batches change nothing, boxes are in the image's pixels."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.geneval.detections import Detection
from src.geneval.detector import Detector, load_detector, read_instances
from src.geneval.names import OBJECTS
from tests.geneval.tiny import detector_folder

CPU = torch.device("cpu")


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def small(floor: float = 0.0) -> Detector:
    detector = load_detector(detector_folder(), CPU, floor)
    return Detector(detector.model, floor, short_side=48, long_side=80)


def shown(detections: list[Detection]) -> list[tuple[str, tuple[float, ...], int, float]]:
    """What was found where, in an order that a score's last digits do not change."""
    told = [(one.label, one.box, int(one.mask.sum()) if one.mask is not None else -1, one.score) for one in detections]
    return sorted(told)


def assert_same(one: list[Detection], other: list[Detection]) -> None:
    """The same objects in the same pixels; scores are kept and summed in float32, of float64 outputs."""
    assert [found[:-1] for found in shown(one)] == [found[:-1] for found in shown(other)]
    assert [found[-1] for found in shown(one)] == pytest.approx([found[-1] for found in shown(other)], rel=2.0**-20)


def test_instances_are_read_pair_by_pair() -> None:
    """Against loops over every query, class and pixel in float64, for outputs that need no scaling."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randn(4, 81, generator=generator) * 3
    masks = torch.randn(4, 6, 5, generator=generator)
    masks[3] = -masks[3].abs() - 1  # a query without a pixel
    found = read_instances(classes, masks, 0.001, (6, 5), (6, 5), (6, 5))
    expected = []
    pairs = []
    for query in range(4):
        logits = classes[query].double().numpy()
        shares = np.exp(logits) / np.exp(logits).sum()
        pairs += [(shares[label], query, label) for label in range(80)]
    for share, query, label in sorted(pairs, reverse=True)[:100]:
        inside = [(y, x) for y, x in product(range(6), range(5)) if masks[query, y, x] > 0]
        if not inside:
            continue
        sure = sum(1 / (1 + np.exp(-float(masks[query, y, x]))) for y, x in inside) / (len(inside) + 1e-6)
        if share * sure > 0.001:
            (top, *_, bottom), (left, *_, right) = sorted(y for y, _ in inside), sorted(x for _, x in inside)
            box = (float(left), float(top), right + 1.0, bottom + 1.0)
            expected.append((OBJECTS[label], share * sure, box, len(inside)))
    assert len(expected) > 20
    ours = sorted((one.label, one.score, one.box, int(one.mask.sum())) for one in found if one.mask is not None)
    assert len(ours) == len(found)
    for (label, score, *rest), (wanted, share, *shape) in zip(ours, sorted(expected), strict=True):
        assert (label, *rest) == (wanted, *shape)
        assert score == pytest.approx(share, abs=1e-5)


def test_a_mask_lands_in_the_images_own_pixels() -> None:
    """A quarter of the model's input, of which the last rows are padding, in an image of twice the scaled size."""
    classes = torch.full((1, 81), -20.0)
    classes[0, 16] = 20.0
    masks = torch.full((1, 16, 8), -30.0)
    masks[0, :6, :4] = 30.0  # of the 12 rows of the scaled image within 16, and its 8 columns
    (found,) = read_instances(classes, masks, 0.3, (64, 32), (48, 32), (96, 64))
    assert found.label == "dog"
    assert found.mask is not None
    assert tuple(found.mask.shape) == (96, 64)
    left, top, right, bottom = found.box
    assert (left, top) == (0, 0)
    assert abs(right - 32) <= 4, "an edge lies within half a logit of where it was"
    assert abs(bottom - 48) <= 4
    assert found.score > 0.9


def test_batches_change_nothing() -> None:
    """One by one, together, and among images of other sizes: the same detections."""
    images = [noise(64, 64, 1), noise(96, 48, 2), noise(64, 64, 3), noise(40, 64, 4)]
    detector = small(floor=0.005)
    detector.model.double()  # in float32 the rounding depends on the batch and the processor
    together = detector(images)
    assert all(together), "an empty comparison would hold of anything"
    assert [found[:-1] for found in shown(together[0])] != [found[:-1] for found in shown(together[2])]
    for image, found in zip(images, together, strict=True):
        (alone,) = detector([image])
        assert_same(alone, found)
        for one in found:
            assert one.mask is not None
            assert tuple(one.mask.shape) == (image.height, image.width)
            assert one.box[2] <= image.width
            assert one.box[3] <= image.height


def test_the_floor_leaves_out_what_no_rule_would_look_at() -> None:
    image = noise(64, 64, 5)
    (everything,) = small(0.0)([image])
    floor = sorted(one.score for one in everything)[len(everything) // 2]
    (above,) = small(floor)([image])
    assert_same(above, [one for one in everything if one.score > floor])
    assert 0 < len(above) < len(everything)


@pytest.mark.parametrize(
    ("size", "expected"), [((384, 384), (800, 800)), ((1024, 1024), (800, 800)), ((100, 400), (333, 1333))]
)
def test_images_are_scaled_as_mmdetection_scales(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The short side to 800 unless the long side reaches 1333 first; height and width in the image's proportion."""
    assert load_detector(detector_folder(), CPU, 0.3)._scaled_size(*size) == expected


def test_what_the_model_is_given() -> None:
    """ImageNet's normalisation, proportions kept, zeros to the next multiple of 32."""
    detector = small()
    seen: list[torch.Tensor] = []
    detector.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True
    )
    detector([Image.new("RGB", (60, 48), (255, 0, 51))])
    (pixels,) = seen
    assert tuple(pixels.shape) == (1, 3, 64, 64)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, :, :48, :60], torch.tensor(expected).view(3, 1, 1).expand(3, 48, 60))
    assert not pixels[:, :, 48:].any()
    assert not pixels[:, :, :, 60:].any()


def test_a_checkpoint_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="knows 7 classes, GenEval needs COCO's 80"):
        load_detector(detector_folder(7), CPU, 0.3)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a Mask2FormerForUniversalSegmentation checkpoint"):
        load_detector(tmp_path, CPU, 0.3)
