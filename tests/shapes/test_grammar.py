"""Plans and scenes are exact inverses of each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.shapes.grammar import PlanError, format_plan, parse_plan
from src.shapes.worlds import SMALL, ObjectKind

scenes = st.lists(
    st.tuples(st.integers(0, SMALL.cells - 1), st.sampled_from(SMALL.kinds)),
    max_size=SMALL.cells,
    unique_by=lambda item: item[0],
).map(dict)


@given(scenes)
def test_parsing_a_formatted_plan_gives_the_scene_in_its_order(scene: dict[int, ObjectKind]) -> None:
    assert list(parse_plan(format_plan(scene)).items()) == list(scene.items())


@given(scenes)
def test_formatting_a_parsed_plan_gives_the_text(scene: dict[int, ObjectKind]) -> None:
    text = format_plan(scene)
    assert format_plan(parse_plan(text)) == text


def test_a_plan_written_by_hand() -> None:
    text = "red circle top-left; blue square center"
    scene = {0: ObjectKind("red", "circle"), 4: ObjectKind("blue", "square")}
    assert parse_plan(text) == scene
    assert format_plan(scene) == text


@pytest.mark.parametrize(
    "text",
    [
        "red circle",
        "red circle top-left blue square center",
        "purple circle top",
        "red hexagon top",
        "red circle nowhere",
        "circle red top",
        "red circle top;",
        "red circle top; blue square top",
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        parse_plan(text)
