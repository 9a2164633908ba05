"""Bare words are understood as the world's own wordings are, and nothing else is guessed."""

from __future__ import annotations

from src.shapes.known import completed
from src.shapes.splits import split_prompts, to_record
from src.values import PromptRecord


def test_every_shipped_prompt_is_understood_from_its_words_alone() -> None:
    for prompt in split_prompts("test"):
        record = to_record(prompt)
        understood = completed(PromptRecord(record.prompt))
        assert (understood.scene, understood.task_type) == (record.scene, record.task_type)


def test_case_spaces_and_a_full_stop_do_not_matter() -> None:
    scene = completed(PromptRecord(" A red  circle left of a blue square. ")).scene
    assert scene["relation"] == {"first": 0, "second": 1, "locality": "left of"}
    assert [(item["color"], item["shape"], item["number"]) for item in scene["objects"]] == [
        ("red", "circle", 1),
        ("blue", "square", 1),
    ]


def test_other_words_and_scenes_that_are_given_stay_as_they_are() -> None:
    for record in (PromptRecord("a dog on a bench"), PromptRecord("a red circle", scene={"objects": []})):
        assert completed(record) is record
