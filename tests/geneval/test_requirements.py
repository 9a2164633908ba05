"""Lines of evaluation_metadata.jsonl: what they say, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from src.geneval.detections import Detection
from src.geneval.names import COLORS, OBJECTS, RELATIONS
from src.geneval.requirements import Unwanted, Wanted, parse_requirements


def test_the_words_are_cocos_and_genevals() -> None:
    """The detector's class numbers are COCO's; three of COCO's names GenEval spells out."""
    assert len(OBJECTS) == len(set(OBJECTS)) == 80
    places = {0: "person", 9: "traffic light", 62: "tv", 64: "computer mouse", 65: "tv remote", 66: "computer keyboard"}
    assert {place: OBJECTS[place] for place in (*places, 79)} == {**places, 79: "toothbrush"}
    assert not any(name != name.strip() or "\n" in name for name in OBJECTS)
    assert (len(COLORS), len(RELATIONS)) == (10, 4)


def test_clauses_are_read() -> None:
    line = {
        "tag": "position",
        "prompt": "a photo of a red dog right of two cats",
        "include": [
            {"class": "cat", "count": 2},
            {"class": "dog", "count": 1, "color": "red", "position": ["right of", 0]},
        ],
        "exclude": [{"class": "cat", "count": 3}],
    }
    wanted = parse_requirements(line, "x:1")
    assert wanted.include == (Wanted("cat", 2), Wanted("dog", 1, "red", "right of", 0))
    assert wanted.exclude == (Unwanted("cat", 3),)
    assert (wanted.tag, wanted.prompt, wanted.metadata) == (line["tag"], line["prompt"], line)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tag": ""}, ["x:1", "tag", "non-empty"]),
        ({"prompt": 3}, ["prompt", "3"]),
        ({"include": {}}, ["include", "list"]),
        ({"include": []}, ["nothing to judge"]),
        ({"include": [{"class": "dog"}]}, ["include[0]", "class and count"]),
        ({"include": [{"class": "mouse", "count": 1}]}, ["class='mouse'", "80"]),
        ({"include": [{"class": "dog", "count": 0}]}, ["count=0", ">= 1"]),
        ({"include": [{"class": "dog", "count": True}]}, ["count=True"]),
        ({"include": [{"class": "dog", "count": 1, "color": "grey"}]}, ["color='grey'", "white"]),
        ({"include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, ["before this one"]),
        ({"include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}, ["left of | right of"]),
        ({"exclude": [{"class": "dog", "count": -1}]}, ["exclude[0]", "count=-1"]),
    ],
)
def test_wrong_lines_name_place_value_and_expectation(change: dict[str, Any], words: list[str]) -> None:
    line = {"tag": "t", "prompt": "p", "include": [{"class": "dog", "count": 1}], **change}
    with pytest.raises(ValueError, match="x:1") as raised:
        parse_requirements(line, "x:1")
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize("line", [[], "p", {"prompt": "a cat"}, {"type": "style", "short_description": "x"}])
def test_lines_of_other_benchmarks_are_told_apart(line: object) -> None:
    with pytest.raises(ValueError, match=r"not a line of GenEval's evaluation_metadata\.jsonl"):
        parse_requirements(line, "x:1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mouse", 0.5, (0, 0, 1, 1)), "label='mouse'"),
        (("cat", 1.5, (0, 0, 1, 1)), "score=1.5"),
        (("cat", 0.5, (2, 0, 1, 1)), "box="),
    ],
)
def test_a_detection_checks_itself(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Detection(*arguments)
