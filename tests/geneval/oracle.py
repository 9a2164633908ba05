"""GenEval's released rules (djghosh13/geneval, evaluation/evaluate_images.py) once more, step by step on arrays.

Detections are as mmdetection gives them, for each class an array (N, 5) of left, top, right, bottom, score. Nothing
here is shared with src/geneval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

COLOR_ORDER = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
Boxes = Mapping[str, list[Any]]


def iou(a: Any, b: Any) -> float:
    def size(low: Any, high: Any) -> float:
        return float(np.prod(np.maximum(np.subtract(high, low) + 1, 0)))

    inter = size(np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4]))
    union = size(a[:2], a[2:4]) + size(b[:2], b[2:4]) - inter
    return inter / union if union else 0


def filtered(
    arrays: Mapping[str, Any], tag: str, threshold: float, counting: float, max_objects: int, max_overlap: float
) -> dict[str, list[Any]]:
    """The detections each class keeps: above the threshold, the best `max_objects`, then suppressed greedily."""
    limit = counting if tag == "counting" else threshold
    kept = {}
    for name, array in arrays.items():
        order = np.argsort(array[:, 4], kind="stable")[::-1]
        order = list(order[array[order, 4] > limit][:max_objects])
        chosen = []
        while order:
            first = order.pop(0)
            chosen.append(array[first])
            order = [i for i in order if max_overlap == 1 or iou(array[first], array[i]) < max_overlap]
        if chosen:
            kept[name] = chosen
    return kept


def position(a: Any, b: Any, threshold: float) -> set[str]:
    corners = np.stack([a[:4], b[:4]]).reshape(2, 2, 2)  # object, corner, axis
    centers = corners.mean(axis=1)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    moved = np.sign(offset) * np.maximum(np.abs(offset) - threshold * sizes.sum(axis=0), 0)
    if (np.abs(moved) < 1e-3).all():
        return set()
    dx, dy = moved / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}


def evaluated(
    metadata: Mapping[str, Any], objects: Boxes, color_of: Callable[[str, Any], str], threshold: float
) -> tuple[bool, list[str]]:
    """Whether the image is correct, and the reasons it is not (true relations in a fixed order, not a set's)."""
    ok, reasons, groups = True, [], []
    for clause in metadata.get("include", []):
        name, number = clause["class"], clause["count"]
        candidates = objects.get(name, [])[:number]
        good = len(candidates) >= number
        if not good:
            reasons.append(f"expected {name}>={number}, found {len(candidates)}")
        if good and "color" in clause:
            seen = [color_of(name, one) for one in candidates]
            if seen.count(clause["color"]) < number:
                good = False
                listed = ", ".join(f"{seen.count(c)} {c}" for c in COLOR_ORDER if c in seen)
                count = seen.count(clause["color"])
                reasons.append(
                    f"expected {clause['color']} {name}>={number}, found {count} {clause['color']}; and {listed}"
                )
        if good and "position" in clause:
            relation, index = clause["position"]
            if groups[index] is None:
                good = False
                reasons.append(f"no target for {name} to be {relation}")
            else:
                for one, other in ((x, y) for x in candidates for y in groups[index]):
                    true = position(one, other, threshold)
                    if relation not in true:
                        good = False
                        told = [r for r in ("left of", "right of", "above", "below") if r in true]
                        reasons.append(f"expected {name} {relation} target, found {' and '.join(told)} target")
                        break
        groups.append(candidates if good else None)
        ok = ok and good
    for clause in metadata.get("exclude", []):
        there = len(objects.get(clause["class"], []))
        if there >= clause["count"]:
            ok = False
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {there}")
    return ok, reasons
