"""GenEval's rules (arXiv 2310.11513, section 3; the released evaluate_images.py) over detections, without a model.

The reasons are worded as the released scorer words them, so that its users' tools read ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot

from src.geneval.detections import Box, Detection, Found, keep
from src.geneval.names import COLORS
from src.geneval.requirements import COUNTING, Requirements, Wanted

# The colour of each of these objects of one class; asked only where a prompt names a colour.
NameColors = Callable[[str, Sequence[Detection]], list[str]]


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """The constants of the rules; the defaults are the released ones.

    threshold, counting_threshold: scores a detection must exceed, the second under the tag "counting".
    max_objects: of a class. max_overlap: of two boxes of a class, 1 is no suppression. position_threshold: the share
    of both boxes' sizes by which centres may differ before it counts.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an image shows what its prompt asks for, why not (a line a reason), and what the rules looked at."""

    correct: bool
    reason: str
    found: Found


def judge(
    requirements: Requirements, detections: Sequence[Detection], name_colors: NameColors, settings: RuleSettings
) -> Verdict:
    """The verdict on one image."""
    threshold = settings.counting_threshold if requirements.tag == COUNTING else settings.threshold
    found = keep(detections, threshold, settings.max_objects, settings.max_overlap)
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []  # of each clause so far, None where it failed
    for wanted in requirements.include:
        objects = found.get(wanted.name, [])[: wanted.count]
        problem = _problem(wanted, objects, matched, name_colors, settings.position_threshold)
        matched.append(None if problem else objects)
        reasons += [problem] if problem else []
    for unwanted in requirements.exclude:
        number = len(found.get(unwanted.name, []))
        if number >= unwanted.count:
            reasons.append(f"expected {unwanted.name}<{unwanted.count}, found {number}")
    return Verdict(not reasons, "\n".join(reasons), found)


def relations(box: Box, target: Box, threshold: float) -> list[str]:
    """How `box` lies to `target`: of left of, right of, above, below, none, one or two.

    Each axis' distance between the centres is shortened by `threshold` times the sum of both sizes along it; what
    is left, over the unshortened distance of the centres, must exceed one half.
    """
    dx, width = (box[0] + box[2] - target[0] - target[2]) / 2, box[2] - box[0] + target[2] - target[0]
    dy, height = (box[1] + box[3] - target[1] - target[3]) / 2, box[3] - box[1] + target[3] - target[1]
    x, y = max(abs(dx) - threshold * width, 0), max(abs(dy) - threshold * height, 0)
    if x < 1e-3 and y < 1e-3:
        return []
    distance = hypot(dx, dy)
    across = ["left of" if dx < 0 else "right of"] if x / distance > 0.5 else []
    return across + (["above" if dy < 0 else "below"] if y / distance > 0.5 else [])


def _problem(
    wanted: Wanted,
    objects: list[Detection],
    matched: Sequence[list[Detection] | None],
    name_colors: NameColors,
    threshold: float,
) -> str:
    """Why a clause does not hold of its most confident objects; empty if it does."""
    name, count = wanted.name, wanted.count
    if len(objects) < count:
        return f"expected {name}>={count}, found {len(objects)}"
    if wanted.color is not None:
        colors = name_colors(name, objects)
        if (number := colors.count(wanted.color)) < count:
            others = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
            return f"expected {wanted.color} {name}>={count}, found {number} {wanted.color}; and {others}"
    if wanted.relation is None or wanted.target is None:
        return ""
    targets = matched[wanted.target]
    if targets is None:
        return f"no target for {name} to be {wanted.relation}"
    for one in objects:
        for target in targets:
            true = relations(one.box, target.box, threshold)
            if wanted.relation not in true:
                return f"expected {name} {wanted.relation} target, found {' and '.join(true)} target"
    return ""
