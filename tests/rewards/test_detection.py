"""Boxes, phrases and suppression against hand-computed values and literal transcriptions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src.rewards.vision.detection import (
    NOTHING,
    Caption,
    Detections,
    build_caption,
    corners,
    detections_by_phrase,
    iou,
    nms,
    phrase_probabilities,
)
from tests.rewards.tiny_experts.bert import BERT_IDS, bert_tokenizer

MARKS = (BERT_IDS["[CLS]"], BERT_IDS["."], BERT_IDS["[SEP]"])


def caption_of(*phrases: str) -> Caption:
    bert = bert_tokenizer()
    return build_caption(phrases, lambda text: bert(text, add_special_tokens=False)["input_ids"], MARKS)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize(
    "phrases",
    [
        ("dog",),
        ("dog", "hot dog"),
        ("hot dog", "dog"),
        ("umbrella", "umbrella"),
        ("roll of paper towel", "paper", "TV", "piñata"),
        ("conical pitcher's mound", "x-ray"),
    ],
)
def test_a_phrase_stands_where_its_span_says(phrases: tuple[str, ...]) -> None:
    """The tokens are those of the whole text; each span decodes to its own phrase; full stops stand between."""
    bert, caption = bert_tokenizer(), caption_of(*phrases)
    assert list(caption.ids) == bert(" . ".join(phrases) + " .")["input_ids"]
    assert caption.phrases == phrases
    for phrase, (start, end) in zip(phrases, caption.spans, strict=True):
        assert bert.decode(caption.ids[start:end]) == bert.decode(bert(phrase, add_special_tokens=False)["input_ids"])
        assert caption.ids[end] == BERT_IDS["."]
    assert [start for start, _ in caption.spans] == [1, *(end + 1 for _, end in caption.spans[:-1])]


def test_a_phrase_without_tokens_is_named() -> None:
    with pytest.raises(ValueError, match=r"'\\u200b' has no tokens"):
        caption_of("dog", "\u200b")


def test_a_phrase_is_scored_by_the_mean_over_its_tokens() -> None:
    """Transformers' post-processing would take the best token, 0.9 and 0.6."""
    logits = torch.tensor([[logit(0.9), logit(0.1), logit(0.2)], [logit(0.4), logit(0.6), -math.inf]])
    expected = torch.tensor([[0.5, 0.5], [0.2, 0.0], [0.4, 1.0 / 3]])
    torch.testing.assert_close(phrase_probabilities(logits, [(0, 2), (2, 3), (0, 3)]), expected)


def test_boxes_above_the_threshold_go_to_each_of_their_phrases() -> None:
    caption = Caption(("hot dog", "dog"), (101, 7, 8, 1012, 8, 1012, 102), ((1, 3), (4, 5)))
    logits = torch.full((3, 7), -9.0)
    logits[0, 1:3] = torch.tensor([logit(0.7), logit(0.5)])  # a hot dog: 0.6
    logits[1, 1:5] = torch.tensor([logit(0.2), logit(0.7), 0.0, logit(0.8)])  # 0.45 a hot dog, 0.8 a dog
    logits[2, 4] = 0.0  # exactly at the threshold: not above it
    boxes = torch.rand(3, 4)
    found = detections_by_phrase(caption, logits, boxes, threshold=0.5)
    assert torch.equal(found["hot dog"].boxes, boxes[:1])
    assert torch.equal(found["dog"].boxes, boxes[1:2])
    torch.testing.assert_close(found["hot dog"].scores, torch.tensor([0.6]))
    torch.testing.assert_close(found["dog"].scores, torch.tensor([0.8]))


def test_a_phrase_that_stands_twice_has_the_boxes_of_both_places() -> None:
    caption = Caption(("cup", "cup"), (101, 7, 1012, 7, 1012, 102), ((1, 2), (3, 4)))
    logits = torch.full((2, 6), -9.0)
    logits[1, 1], logits[0, 3] = 3.0, 2.0
    boxes = torch.rand(2, 4)
    found = detections_by_phrase(caption, logits, boxes, threshold=0.5)
    assert torch.equal(found["cup"].boxes, boxes[[1, 0]])


def test_the_most_confident_box_of_an_object() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.2, 0.4], [0.9, 0.9, 0.1, 0.1]])
    best = Detections(boxes, torch.tensor([0.4, 0.9, 0.5])).best()
    torch.testing.assert_close(best, torch.tensor([0.4, 0.3, 0.6, 0.7]))
    assert len(NOTHING) == 0


@pytest.mark.parametrize(("boxes", "scores"), [((2, 4), (3,)), ((2, 3), (2,)), ((2, 4), (2, 1))])
def test_detections_check_their_shapes(boxes: tuple[int, ...], scores: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(K, 4\) and \(K,\)"):
        Detections(torch.zeros(boxes), torch.zeros(scores))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 4, 2), (1, 0, 2, 2), 0.25),  # inside
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),  # touching
        ((0, 0, 1, 1), (3, 3, 4, 4), 0.0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),  # no area
    ],
)
def test_iou_by_hand(first: tuple[float, ...], second: tuple[float, ...], expected: float) -> None:
    one, two = torch.tensor(first).float(), torch.tensor(second).float()
    assert iou(one, two).item() == pytest.approx(expected)
    assert iou(two, one).item() == pytest.approx(expected)


def test_suppression_by_hand() -> None:
    """The second is a copy of the first (IoU 2/3), the third overlaps both by half at most, the last is far."""
    boxes = torch.tensor([[0, 0, 10, 10], [2, 0, 12, 10], [5, 0, 15, 10], [50, 50, 60, 60]]).float()
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95])
    assert nms(boxes, scores, 0.5).tolist() == [3, 0, 2]  # IoU of 0 and 2: 50 / 150; 1, its neighbour, is gone
    assert nms(boxes, scores, 0.3).tolist() == [3, 0]
    assert nms(boxes, scores, 0.7).tolist() == [3, 0, 1, 2]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []


def suppressed_by_definition(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Take the most confident box left, drop all that overlap it too much, again; in whole numbers."""

    def overlap(a: list[int], b: list[int]) -> float:
        shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
        return shared / union

    whole = boxes.int().tolist()
    left = sorted(range(len(whole)), key=lambda i: (-scores[i].item(), i))
    kept = []
    while left:
        kept.append(left.pop(0))
        left = [i for i in left if overlap(whole[kept[-1]], whole[i]) <= threshold]
    return kept


@given(
    st.lists(
        st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2, st.sampled_from([0.2, 0.4, 0.6, 0.8])),
        max_size=12,
    ),
    st.sampled_from([0.1234, 0.3141, 0.5236, 0.9137]),  # no ratio of small whole numbers: rounding decides nothing
)
def test_suppression_is_greedy(rows: list[tuple[float, ...]], threshold: float) -> None:
    """Ties of confidence included."""
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], dim=1)
    expected = suppressed_by_definition(boxes, table[:, 4], threshold)
    assert nms(boxes, table[:, 4], threshold).tolist() == expected


@given(*[st.floats(0, 1, width=32) for _ in range(4)])
def test_corners_keep_centre_and_size(x: float, y: float, w: float, h: float) -> None:
    box = corners(torch.tensor([x, y, w, h]))
    expected = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(box, expected, rtol=0, atol=1e-6)
