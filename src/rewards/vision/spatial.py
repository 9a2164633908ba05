"""The relative position of two detected objects: all localities of the T2I-R1 training set.

The formulas are the released code's (2505.00703), which took them from T2I-CompBench's 2D spatial metric
(2307.06350), with its errors fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from src.rewards.vision.detection import NOTHING, Detections, corners, iou, nms
from src.values import SpatialRelation

Relation = Literal["left", "right", "above", "below", "near"]

LOCALITIES: dict[str, Relation] = {
    "left of": "left",
    "on the left of": "left",
    "right of": "right",
    "on the right of": "right",
    "above": "above",
    "on top of": "above",
    "on the top of": "above",
    "below": "below",
    "on the bottom of": "below",
    "next to": "near",
    "near": "near",
    "on side of": "near",
}
# These match no branch of the released code.
UNMATCHED_IN_RELEASE = ("above", "on top of")

# T2I-CompBench calls objects near within 150 pixels, on pictures of 512; boxes here are in units of the image.
NEAR_DISTANCE = 150 / 512
# Boxes that overlap by less score in full.
OVERLAP = 0.1
# The score of one found object; both and a perfect position give 0.9.
FOUND = 0.2


def relation_of(locality: str) -> Relation:
    """The meaning of a locality; raises ValueError for one that is not one of the twelve."""
    if locality not in LOCALITIES:
        raise ValueError(f"locality {locality!r}: unknown; known are {', '.join(LOCALITIES)}")
    return LOCALITIES[locality]


def position_score(
    locality: str, first: Tensor, second: Tensor, near_distance: float = NEAR_DISTANCE, faithful: bool = False
) -> float:
    """How well `first` is at `locality` of `second`, in [0, 1]; boxes (4,) as corners.

    With d the distance from centre to centre along the relation's axis:

    - left, right, above, below: 0 where d points the other way or is not longer than the distance along the
      other axis; else 1 where the boxes' IoU is below 0.1, and 0.1 / IoU where they overlap more;
    - near: 1 where the larger of the two distances is at most `near_distance` (units of the image), else
      near_distance / distance.

    faithful: as released: "above" and "on top of" give 0, nearness (150 against distances below 1) always 1.
    Raises ValueError for a locality that is not one of the twelve.
    """
    relation = relation_of(locality)
    if faithful and locality in UNMATCHED_IN_RELEASE:
        return 0.0
    x, y = _centre_distance(first, second)
    if relation == "near":
        distance = max(abs(x), abs(y))
        return 1.0 if faithful or distance <= near_distance else near_distance / distance
    along, across = {"left": (x, y), "right": (-x, y), "above": (y, x), "below": (-y, x)}[relation]
    if along <= abs(across):
        return 0.0
    overlap = float(iou(first, second))
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def spatial_score(
    relation: SpatialRelation,
    found: Mapping[str, Detections],
    near_distance: float = NEAR_DISTANCE,
    nms_threshold: float = 0.5,
    faithful: bool = False,
) -> float:
    """0.2 for each object that is found and, when both are, half of their position score: in [0, 0.9].

    Of each object the most confident box counts. A relation between two objects of the same name ("a cat next
    to a cat") is between the two most confident boxes that NMS leaves, in the better order; the released code
    fails there and gives 0, and so does `faithful`. Raises ValueError for an unknown locality.
    """
    relation_of(relation.locality)  # an unknown one shows, whatever is found
    if relation.first == relation.second:
        if faithful:
            return 0.0
        kind = found.get(relation.first, NOTHING)
        boxes = corners(kind.boxes)
        two = boxes[nms(boxes, kind.scores, nms_threshold)[:2]]
        pairs = [(two[0], two[1]), (two[1], two[0])] if len(two) == 2 else []
        objects = len(two)
    else:
        sides = [found.get(relation.first, NOTHING), found.get(relation.second, NOTHING)]
        objects = sum(len(side) > 0 for side in sides)
        pairs = [(sides[0].best(), sides[1].best())] if objects == 2 else []
    positions = [position_score(relation.locality, *pair, near_distance, faithful) for pair in pairs]
    return FOUND * objects + max(positions, default=0.0) / 2


def _centre_distance(first: Tensor, second: Tensor) -> tuple[float, float]:
    """From the centre of `first` to that of `second`, (4,) corners each: x to the right, y down."""
    x0, y0, x1, y1 = (second - first).tolist()
    return (x0 + x1) / 2, (y0 + y1) / 2
