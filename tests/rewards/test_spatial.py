"""All twelve localities against boxes placed by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src.rewards.vision.detection import Detections, corners
from src.rewards.vision.spatial import LOCALITIES, NEAR_DISTANCE, position_score, spatial_score
from src.values import SpatialRelation

TWELVE = (
    *("left of", "right of", "above", "below", "next to", "near", "on side of", "on top of"),
    *("on the left of", "on the right of", "on the top of", "on the bottom of"),
)
NEAR = ("next to", "near", "on side of")
# Boxes by the word for where they are; y points down.
PLACES = {"left": (0.1, 0.5), "right": (0.9, 0.5), "above": (0.5, 0.1), "below": (0.5, 0.9)}
MEANT = {
    "left": ("left of", "on the left of"),
    "right": ("right of", "on the right of"),
    "above": ("above", "on top of", "on the top of"),
    "below": ("below", "on the bottom of"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def box(x: float, y: float, w: float = 0.1, h: float = 0.1) -> Tensor:
    """Corners of a box by its centre and size."""
    return corners(torch.tensor([x, y, w, h]))


def found(*boxes: tuple[float, ...], scores: tuple[float, ...] = ()) -> Detections:
    return Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(scores or [0.5] * len(boxes)))


def test_there_are_the_twelve() -> None:
    assert set(LOCALITIES) == set(TWELVE)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("locality", [name for name in TWELVE if name not in NEAR])
def test_a_direction_is_right_in_one_place_only(place: str, locality: str) -> None:
    expected = 1.0 if locality in MEANT[place] else 0.0
    middle = box(0.5, 0.5)
    assert position_score(locality, box(*PLACES[place]), middle) == expected
    assert position_score(locality, middle, box(*PLACES[OPPOSITE[place]])) == expected


@pytest.mark.parametrize("locality", [name for name in TWELVE if name not in NEAR])
def test_the_directions_axis_must_dominate(locality: str) -> None:
    """On the diagonal neither axis is longer; just off it one is."""
    place = next(word for word, names in MEANT.items() if locality in names)
    x, y = PLACES[place]
    dx, dy = x - 0.5, y - 0.5
    middle = box(0.5, 0.5)
    assert position_score(locality, box(0.5 + dx + dy, 0.5 + dy + dx), middle) == 0.0
    assert position_score(locality, box(0.5 + dx + 0.9 * dy, 0.5 + dy + 0.9 * dx), middle) == 1.0
    assert position_score(locality, box(0.5 + dx - 1.1 * dy, 0.5 + dy - 1.1 * dx), middle) == 0.0


def test_overlap_lowers_a_direction() -> None:
    """Squares of side 0.4: shifted by 0.2 they share a third of their union, by 0.36 a nineteenth."""
    at = [box(x, 0.5, 0.4, 0.4) for x in (0.3, 0.5, 0.66)]
    assert position_score("left of", at[0], at[1]) == pytest.approx(0.1 / (1 / 3), rel=1e-5)
    assert position_score("left of", at[0], at[2]) == 1.0
    assert position_score("right of", at[0], at[1]) == 0.0


@pytest.mark.parametrize("locality", NEAR)
def test_nearness_fades_with_the_larger_distance(locality: str) -> None:
    first = box(0.1, 0.1)
    assert position_score(locality, first, box(0.3, 0.2)) == 1.0
    assert position_score(locality, first, box(0.2, 0.3)) == 1.0
    assert position_score(locality, first, box(0.1, 0.85)) == pytest.approx(150 / 512 / 0.75, rel=1e-5)
    assert position_score(locality, first, box(0.85, 0.1), near_distance=0.5) == pytest.approx(2 / 3, rel=1e-5)


def test_an_unknown_locality_is_named() -> None:
    with pytest.raises(ValueError, match="locality 'inside of': unknown; known are left of, "):
        position_score("inside of", box(0.1, 0.1), box(0.2, 0.2))


@given(
    st.sampled_from(TWELVE), st.lists(st.floats(0, 1), min_size=4, max_size=4), st.tuples(*[st.floats(0.05, 0.5)] * 4)
)
def test_swapped_objects_stand_the_other_way(
    locality: str, at: list[float], sizes: tuple[float, float, float, float]
) -> None:
    """Scores stay in [0, 1]; a direction and its opposite agree on swapped boxes and never both score."""
    first, second = box(at[0], at[1], *sizes[:2]), box(at[2], at[3], *sizes[2:])
    score = position_score(locality, first, second)
    assert 0.0 <= score <= 1.0
    if locality in NEAR:
        assert position_score(locality, second, first) == score
        return
    place = next(word for word, names in MEANT.items() if locality in names)
    opposite = MEANT[OPPOSITE[place]][0]
    assert position_score(opposite, second, first) == score
    assert 0.0 in (score, position_score(opposite, first, second))


@pytest.mark.parametrize("locality", TWELVE)
def test_no_locality_is_capped(locality: str) -> None:
    """The released code ends "above" and "on top of" at 0.4."""
    place = next((word for word, names in MEANT.items() if locality in names), None)
    first = PLACES[place] if place else (0.4, 0.5)
    objects = {"cat": found((*first, 0.1, 0.1)), "dog": found((0.5, 0.5, 0.1, 0.1))}
    relation = SpatialRelation("cat", "dog", locality)
    assert spatial_score(relation, objects) == pytest.approx(0.9)
    capped = locality in ("above", "on top of")
    assert spatial_score(relation, objects, faithful=True) == pytest.approx(0.4 if capped else 0.9)


def test_found_objects_count_without_their_position() -> None:
    relation = SpatialRelation("cat", "dog", "left of")
    cat = {"cat": found((0.2, 0.5, 0.1, 0.1))}
    assert spatial_score(relation, {}) == 0.0
    assert spatial_score(relation, cat) == 0.2
    assert spatial_score(relation, {**cat, "dog": found()}) == 0.2
    wrong = {**cat, "dog": found((0.1, 0.5, 0.05, 0.1))}
    assert spatial_score(relation, wrong) == pytest.approx(0.4)


def test_the_most_confident_box_of_each_object_counts() -> None:
    relation = SpatialRelation("cat", "dog", "left of")
    dog = found((0.5, 0.5, 0.1, 0.1))
    left, right = (0.2, 0.5, 0.1, 0.1), (0.8, 0.5, 0.1, 0.1)
    assert spatial_score(relation, {"cat": found(left, right, scores=(0.6, 0.5)), "dog": dog}) == pytest.approx(0.9)
    assert spatial_score(relation, {"cat": found(left, right, scores=(0.5, 0.6)), "dog": dog}) == pytest.approx(0.4)


def test_two_of_a_kind_are_the_two_most_confident_that_nms_leaves() -> None:
    relation = SpatialRelation("cat", "cat", "next to")
    one, copy, other = (0.2, 0.5, 0.1, 0.1), (0.205, 0.5, 0.1, 0.1), (0.95, 0.5, 0.1, 0.1)
    apart = 0.4 + NEAR_DISTANCE / 0.75 / 2
    assert spatial_score(relation, {"cat": found(one, copy, other, scores=(0.9, 0.8, 0.7))}) == pytest.approx(apart)
    assert spatial_score(relation, {"cat": found(one, copy)}) == 0.2
    assert spatial_score(relation, {}) == 0.0
    above = SpatialRelation("cat", "cat", "above")
    assert spatial_score(above, {"cat": found((0.5, 0.8, 0.1, 0.1), (0.5, 0.2, 0.1, 0.1))}) == pytest.approx(0.9)
    assert spatial_score(above, {"cat": found(one, other)}, faithful=True) == 0.0


@pytest.mark.parametrize("locality", NEAR)
def test_released_nearness_is_always_full(locality: str) -> None:
    assert position_score(locality, box(0.05, 0.05), box(0.95, 0.95), faithful=True) == 1.0
    assert position_score(locality, box(0.05, 0.05), box(0.95, 0.95)) == pytest.approx(NEAR_DISTANCE / 0.9, rel=1e-5)
