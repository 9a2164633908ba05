"""Boxes and phrases of a grounded detector: pure functions.

A box is four numbers in units of the image (x by its width, y by its height, y pointing down): either
centre-size (cx, cy, w, h), as the network gives them, or corners (x0, y0, x1, y1). Transformers' own
post-processing of GroundingDINO is not used: it takes the best token anywhere in the caption as a box's
score and decodes a label from the tokens above a threshold; here a phrase is scored as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Caption:
    """A detector's caption, "phrase . phrase .", with the place of every phrase.

    ids: the tokens, with [CLS] and [SEP]. spans: for each phrase the half-open range of its tokens in ids.
    """

    phrases: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def build_caption(phrases: Sequence[str], tokenize: Callable[[str], list[int]], marks: tuple[int, int, int]) -> Caption:
    """The caption of some phrases.

    tokenize: text -> ids without special tokens; marks: the ids of [CLS], "." and [SEP]. A BERT tokenizer
    splits at blanks and full stops, so the phrases' tokens are those of the whole caption, and their positions are
    known by construction: "dog" and "hot dog", or a phrase given twice, cannot be confused.

    Raises ValueError for a phrase that has no tokens.
    """
    start, stop, end = marks
    ids, spans = [start], []
    for phrase in phrases:
        tokens = tokenize(phrase)
        if not tokens:
            raise ValueError(f"{phrase!r} has no tokens, so it cannot be searched for")
        spans.append((len(ids), len(ids) + len(tokens)))
        ids += [*tokens, stop]
    return Caption(tuple(phrases), (*ids, end), tuple(spans))


@dataclass(frozen=True, slots=True)
class Detections:
    """The boxes found for one phrase: centre-size (K, 4) float32, with their probabilities (K,)."""

    boxes: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.scores), 4) or self.scores.dim() != 1:
            raise ValueError(
                f"Detections: boxes {tuple(self.boxes.shape)} and scores {tuple(self.scores.shape)}, "
                "expected (K, 4) and (K,)"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def best(self) -> Tensor:
        """The most confident box as corners (4,); of equals the first."""
        return corners(self.boxes[self.scores.argmax()])


NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0))


def phrase_probabilities(logits: Tensor, spans: Sequence[Span]) -> Tensor:
    """A detector's confidence that a query shows a phrase: the mean probability over the phrase's tokens.

    logits (Q, T): of Q queries against the T tokens of the caption. Returns (P, Q) float32 in [0, 1].
    """
    probabilities = logits.float().sigmoid()
    return torch.stack([probabilities[:, start:end].mean(1) for start, end in spans])


def detections_by_phrase(caption: Caption, logits: Tensor, boxes: Tensor, threshold: float) -> dict[str, Detections]:
    """The boxes of every phrase whose probability is above `threshold`; one query may serve several phrases.

    logits (Q, T), boxes (Q, 4) centre-size. A phrase that is in the caption twice has the boxes of both places.
    """
    found: dict[str, Detections] = {}
    for phrase, probability in zip(caption.phrases, phrase_probabilities(logits, caption.spans), strict=True):
        above = probability > threshold
        earlier = found.get(phrase, NOTHING)
        found[phrase] = Detections(
            torch.cat([earlier.boxes, boxes[above].float()]), torch.cat([earlier.scores, probability[above]])
        )
    return found


def corners(boxes: Tensor) -> Tensor:
    """Centre-size boxes (..., 4) as corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes by their corners, (..., 4) each, broadcast; 0 where the union has no area."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = _area(first) + _area(second) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression: the indices kept, most confident first.

    boxes (K, 4) corners, scores (K,). A box goes where its IoU with a kept, more confident one is above
    `threshold`; of equally confident ones the earlier counts as more confident. In plain torch: torchvision's
    operator is missing with a CPU build of torch.
    """
    order = scores.argsort(descending=True, stable=True)
    overlap = iou(boxes[order, None], boxes[None, order]) > threshold
    suppressed = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    kept = []
    for place in range(len(order)):
        if not suppressed[place]:
            kept.append(place)
            suppressed |= overlap[place]
    return order[kept]
