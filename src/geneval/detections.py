"""What a detector found in an image, and which of it GenEval's rules look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from src.geneval.names import OBJECTS

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: its class, score in [0, 1], box (left, top, right, bottom) in pixels, perhaps its mask.

    mask: (H, W) bool on the CPU, of the whole image's size; detections are compared without it.

    Raises:
        ValueError: for an unknown class, a score outside of [0, 1], a box that ends before it starts, a mask that is
            no (H, W) bool.
    """

    label: str
    score: float
    box: Box
    mask: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.label not in OBJECTS:
            raise ValueError(f"label={self.label!r}: not one of the {len(OBJECTS)} object names")
        if not 0 <= self.score <= 1:
            raise ValueError(f"score={self.score}: expected a number in [0, 1]")
        left, top, right, bottom = self.box
        if not (left <= right and top <= bottom):
            raise ValueError(f"box={self.box}: expected (left, top, right, bottom), not ending before it starts")
        if self.mask is not None and (self.mask.dim() != 2 or self.mask.dtype.itemsize != 1):
            raise ValueError(f"mask: expected (H, W) bool, got {tuple(self.mask.shape)} {self.mask.dtype}")


Found = dict[str, list[Detection]]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, whose last pixel is counted in (+1), as in the released scorer."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    common = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - common
    return common / union if union else 0.0


def keep(detections: Sequence[Detection], threshold: float, max_objects: int, max_overlap: float) -> Found:
    """The detections the rules look at, by class in `OBJECTS`' order, the most confident first.

    Of each class those with a score above `threshold`, of these the first `max_objects`, of these none that overlaps
    a better one of its class by `max_overlap` or more (1: all stay). A class without any is left out.
    """
    found: Found = {}
    for name in OBJECTS:
        # Reversed, not sorted in reverse: among equal scores the released scorer takes the later one first.
        ranked = sorted((d for d in detections if d.label == name), key=lambda d: d.score)[::-1]
        ranked = [d for d in ranked if d.score > threshold][:max_objects]
        kept: list[Detection] = []
        for candidate in ranked:
            if max_overlap == 1 or all(overlap(better.box, candidate.box) < max_overlap for better in kept):
                kept.append(candidate)
        if kept:
            found[name] = kept
    return found
