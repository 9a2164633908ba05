"""GenEval's rules: by hand, and against a transcription of the released scorer over random scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.geneval.detections import Detection
from src.geneval.names import COLORS, RELATIONS
from src.geneval.requirements import parse_requirements
from src.geneval.rules import RuleSettings, Verdict, judge, relations
from tests.geneval import oracle


def found(label: str, left: float, top: float, right: float, bottom: float, score: float = 0.95) -> Detection:
    return Detection(label, score, (left, top, right, bottom))


def verdict(
    metadata: dict[str, Any], detections: Sequence[Detection], colors: Sequence[str] = (), **constants: Any
) -> Verdict:
    """`colors`: what the classifier says, in the order it is asked."""
    said = list(colors)
    requirements = parse_requirements({"tag": "test", "prompt": "a photo", **metadata}, "test")
    return judge(requirements, detections, lambda _, objects: [said.pop(0) for _ in objects], RuleSettings(**constants))


ONE_DOG = {"include": [{"class": "dog", "count": 1}]}
THREE_CATS = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 3}],
    "exclude": [{"class": "cat", "count": 4}],
}
DOG_RIGHT_OF_CAT = {
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
}


@pytest.mark.parametrize(("score", "correct"), [(0.3, False), (0.31, True), (0.29, False)])
def test_an_object_counts_above_the_threshold(score: float, correct: bool) -> None:
    result = verdict(ONE_DOG, [found("dog", 0, 0, 9, 9, score), found("cat", 0, 0, 9, 9)])
    assert (result.correct, result.reason) == (correct, "" if correct else "expected dog>=1, found 0")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.95, 0.92, 0.91], ""),
        ([0.95, 0.92], "expected cat>=3, found 2"),
        ([0.95, 0.92, 0.9, 0.5], "expected cat>=3, found 2"),  # not above 0.9
        ([0.95, 0.94, 0.93, 0.91], "expected cat<4, found 4"),
        ([0.95, 0.94, 0.93, 0.89], ""),
        ([0.99] * 20, "expected cat<4, found 16"),  # no class counts beyond 16
    ],
)
def test_counting_needs_confident_detections_and_no_more_than_asked(scores: list[float], reason: str) -> None:
    result = verdict(THREE_CATS, [found("cat", 20 * i, 0, 20 * i + 9, 9, score) for i, score in enumerate(scores)])
    assert (result.correct, result.reason) == (not reason, reason)


def test_without_the_tag_counting_more_than_asked_is_fine() -> None:
    assert verdict(ONE_DOG, [found("dog", i, 0, i + 5, 5, 0.4) for i in range(5)]).correct


def test_colours_are_asked_of_the_most_confident_objects_only() -> None:
    metadata = {"include": [{"class": "car", "count": 2, "color": "red"}]}
    cars = [found("car", i, 0, i + 5, 5, score) for i, score in enumerate((0.5, 0.9, 0.7))]
    asked: list[Detection] = []

    def classify(name: str, objects: Sequence[Detection]) -> list[str]:
        asked.extend(objects)
        return ["red", "blue"]

    requirements = parse_requirements({"tag": "colors", "prompt": "p", **metadata}, "test")
    result = judge(requirements, cars, classify, RuleSettings())
    assert [one.score for one in asked] == [0.9, 0.7]
    assert result.reason == "expected red car>=2, found 1 red; and 1 red, 1 blue"
    assert verdict(metadata, cars, ["red", "red"]).correct


def test_a_wrong_colour_leaves_no_target() -> None:
    metadata = {
        "include": [
            {"class": "cat", "count": 1, "color": "black"},
            {"class": "dog", "count": 1, "position": ["left of", 0]},
        ]
    }
    scene = [found("cat", 50, 0, 60, 10), found("dog", 0, 0, 10, 10)]
    assert verdict(metadata, scene, ["black"]).correct
    assert verdict(metadata, scene, ["white"]).reason == (
        "expected black cat>=1, found 0 black; and 1 white\nno target for dog to be left of"
    )


def test_position_by_hand() -> None:
    # Boxes of 10 x 10: centres must differ by more than 0.1 * (10 + 10) = 2, and by half the distance after that.
    box = (50.0, 50.0, 60.0, 60.0)
    assert relations((47.9, 50, 57.9, 60), box, 0.1) == []  # moved 2.1: 0.1 left of 2.1 is far below one half
    assert relations((45.9, 50, 55.9, 60), box, 0.1) == ["left of"]  # moved 4.1: 2.1 / 4.1 > 0.5
    assert relations((46.0, 50, 56.0, 60), box, 0.1) == []  # moved 4: 2 / 4 is not above one half
    assert relations((80, 50, 90, 60), box, 0.1) == ["right of"]
    assert relations((50, 20, 60, 30), box, 0.1) == ["above"]
    assert relations((50, 80, 60, 90), box, 0.1) == ["below"]
    assert relations((80, 80, 90, 90), box, 0.1) == ["right of", "below"]  # 28 / (30 * sqrt 2) = 0.66 on both axes
    assert relations(box, box, 0.1) == []
    assert relations((50, 45, 60, 55), box, 0.0) == ["above"]


def test_position_holds_of_every_pair() -> None:
    cat, right, left = found("cat", 50, 0, 60, 10), found("dog", 90, 0, 99, 10), found("dog", 0, 0, 9, 10, 0.94)
    assert verdict(DOG_RIGHT_OF_CAT, [cat, left, right]).correct, "only the most confident dog is looked at"
    both = {"include": [DOG_RIGHT_OF_CAT["include"][0], {**DOG_RIGHT_OF_CAT["include"][1], "count": 2}]}
    assert verdict(both, [cat, left, right]).reason == "expected dog right of target, found left of target"
    assert verdict(DOG_RIGHT_OF_CAT, [right]).reason == "expected cat>=1, found 0\nno target for dog to be right of"


def test_overlapping_boxes_stay_unless_suppression_is_asked_for() -> None:
    twins = [found("dog", 0, 0, 100, 100, 0.9), found("dog", 0, 0, 100, 99, 0.8), found("dog", 0, 60, 99, 160, 0.7)]
    two = {"include": [{"class": "dog", "count": 3}]}
    assert verdict(two, twins).correct
    assert verdict(two, twins, max_overlap=0.5).reason == "expected dog>=3, found 2"


NAMES = ("cat", "dog", "computer mouse")
numbers = st.integers(0, 100).map(float)


@st.composite
def detections(draw: st.DrawFn) -> Detection:
    x, y, width, height = draw(numbers), draw(numbers), draw(numbers), draw(numbers)
    score = draw(st.sampled_from([0.05, 0.3, 0.31, 0.5, 0.7, 0.9, 0.905, 0.95, 1.0]))
    return Detection(draw(st.sampled_from(NAMES)), score, (x, y, x + width, y + height))


@st.composite
def metadata(draw: st.DrawFn) -> dict[str, Any]:
    include: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 3))):
        clause: dict[str, Any] = {"class": draw(st.sampled_from(NAMES)), "count": draw(st.integers(1, 3))}
        if draw(st.booleans()):
            clause["color"] = draw(st.sampled_from(COLORS[:3]))
        if index and draw(st.booleans()):
            clause["position"] = [draw(st.sampled_from(RELATIONS)), draw(st.integers(0, index - 1))]
        include.append(clause)
    exclude = draw(
        st.lists(st.fixed_dictionaries({"class": st.sampled_from(NAMES), "count": st.integers(1, 4)}), max_size=2)
    )
    return {"tag": draw(st.sampled_from(["counting", "position"])), "include": include, "exclude": exclude}


@settings(max_examples=300)
@given(metadata(), st.lists(detections(), max_size=12), st.sampled_from([1, 2, 16]), st.sampled_from([1.0, 0.4]))
def test_rules_are_the_released_ones(
    asked: dict[str, Any], scene: list[Detection], max_objects: int, max_overlap: float
) -> None:
    def color(box: Sequence[float]) -> str:
        return COLORS[int(sum(box[:4])) % 3]

    requirements = parse_requirements({"prompt": "p", **asked}, "test")
    constants = RuleSettings(max_objects=max_objects, max_overlap=max_overlap)
    ours = judge(requirements, scene, lambda _, objects: [color(one.box) for one in objects], constants)
    arrays = {
        name: np.array([[*one.box, one.score] for one in scene if one.label == name]).reshape(-1, 5) for name in NAMES
    }
    kept = oracle.filtered(arrays, asked["tag"], 0.3, 0.9, max_objects, max_overlap)
    assert {name: [[*one.box, one.score] for one in objects] for name, objects in ours.found.items()} == {
        name: [box.tolist() for box in boxes] for name, boxes in kept.items()
    }
    correct, reasons = oracle.evaluated(asked, kept, lambda _, box: color(box), 0.1)
    assert (ours.correct, ours.reason) == (correct, "\n".join(reasons))


@given(*[numbers] * 8, st.sampled_from([0.0, 0.1, 0.3]))
def test_relations_are_the_released_ones_and_mirror(
    x: float, y: float, w: float, h: float, x2: float, y2: float, w2: float, h2: float, threshold: float
) -> None:
    a, b = (x, y, x + w, y + h), (x2, y2, x2 + w2, y2 + h2)
    there, back = relations(a, b, threshold), relations(b, a, threshold)
    assert set(there) == oracle.position(np.array(a), np.array(b), threshold)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert [opposite[name] for name in there] == back
