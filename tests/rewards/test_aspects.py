"""What a prompt is scored for."""

from __future__ import annotations

import pytest

from src.rewards.aspects import aspect_of, objects_of
from src.values import ObjectCount, PromptRecord, SpatialRelation

NEAR = SpatialRelation("cat", "dog", "near")
TWO = (ObjectCount("cat", 2),)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (PromptRecord("p", "spatial", ("cat", "dog"), spatial=NEAR), "spatial"),
        (PromptRecord("p", "numeracy", ("cat",), counts=TWO), "numeracy"),
        (PromptRecord("p", "color", ("cat",), ("red cat",)), "object"),
        (PromptRecord("p", "object", ("cat",)), "object"),
        # As in the released set: a complex prompt is about its objects, though it carries a relation.
        (PromptRecord("p", "complex", ("cat", "dog"), spatial=NEAR), "object"),
        # A data set of one's own: the metadata decides, whatever its kinds of task are called.
        (PromptRecord("p", "mine", ("cat", "dog"), spatial=NEAR), "spatial"),
        (PromptRecord("p", "mine", ("cat",), counts=TWO), "numeracy"),
        (PromptRecord("p", "mine", ("cat", "dog"), spatial=NEAR, counts=TWO), "spatial"),
        (PromptRecord("p"), "object"),
    ],
)
def test_the_record_decides(record: PromptRecord, expected: str) -> None:
    assert aspect_of(record) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (PromptRecord("p", nouns=("cat", "dog", "cat")), ("cat", "dog")),
        (PromptRecord("p", nouns=("dog",), spatial=NEAR), ("dog", "cat")),
        (PromptRecord("p", spatial=NEAR), ("cat", "dog")),
        (PromptRecord("p", "numeracy", ("dog",), counts=TWO), ("dog", "cat")),
        (PromptRecord("p", "complex", ("plant",), spatial=NEAR), ("plant",)),
        (PromptRecord("p"), ()),
    ],
)
def test_each_object_is_looked_for_once(record: PromptRecord, expected: tuple[str, ...]) -> None:
    assert objects_of(record) == expected
