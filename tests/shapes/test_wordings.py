"""What prompts ask for, worked out by hand for each form, reasoning forms above all."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from src.shapes.judge import judge_labels
from src.shapes.requirements import Requirement, arrange, stands
from src.shapes.scenes import scene_labels
from src.shapes.splits import DrawnPrompt
from src.shapes.wordings import KINDS, forms
from src.shapes.worlds import SMALL

ALL_PROMPTS = {
    text: DrawnPrompt(text, form, params)
    for form in forms().values()
    for params in form.combinations()
    for text in form.wordings(params)
}


def shown(requirement: Requirement) -> Counter[str]:
    return Counter({item.kind.name: item.number for item in requirement.objects})


@pytest.mark.parametrize(
    ("text", "kind", "asked", "misread"),
    [
        ("a red circle", "one", {"red circle": 1}, {"red circle": 2}),
        ("three green squares", "count", {"green square": 3}, {"green square": 2}),
        ("exactly five green squares", "count", {"green square": 5}, {"green square": 4}),
        (
            "two red circles and a blue square",
            "pair",
            {"red circle": 2, "blue square": 1},
            {"red circle": 2, "red square": 1},
        ),
        ("a red circle and a blue circle", "pair", {"red circle": 1, "blue circle": 1}, {"red circle": 2}),
        (
            "a red circle, a green square and a blue triangle",
            "pair",
            {"red circle": 1, "green square": 1, "blue triangle": 1},
            {"red circle": 1, "red square": 1, "blue triangle": 1},
        ),
        ("two red circles and one more", "reasoning", {"red circle": 3}, {"red circle": 2}),
        ("three blue squares plus two more", "reasoning", {"blue square": 5}, {"blue square": 3}),
        (
            "a circle of every colour but red",
            "reasoning",
            {"green circle": 1, "blue circle": 1, "yellow circle": 1},
            {"red circle": 1, "green circle": 1, "blue circle": 1, "yellow circle": 1},
        ),
        (
            "a square of every colour except red and blue",
            "reasoning",
            {"green square": 1, "yellow square": 1},
            {"red square": 1, "green square": 1, "blue square": 1, "yellow square": 1},
        ),
        (
            "every red shape but the circle",
            "reasoning",
            {"red square": 1, "red triangle": 1},
            {"red circle": 1, "red square": 1, "red triangle": 1},
        ),
        (
            "as many red circles as blue squares and two blue squares",
            "reasoning",
            {"red circle": 2, "blue square": 2},
            {"blue square": 2},
        ),
        (
            "one blue square and as many red circles",
            "reasoning",
            {"red circle": 1, "blue square": 1},
            {"blue square": 1},
        ),
        (
            "two red circles and one blue square more than that",
            "reasoning",
            {"red circle": 2, "blue square": 3},
            {"red circle": 2, "blue square": 1},
        ),
        (
            "one red circle and one blue square more than red circles",
            "reasoning",
            {"red circle": 1, "blue square": 2},
            {"red circle": 1, "blue square": 1},
        ),
    ],
)
def test_what_a_prompt_asks_for_and_how_it_is_misread(
    text: str, kind: str, asked: dict[str, int], misread: dict[str, int]
) -> None:
    prompt = ALL_PROMPTS[text]
    assert prompt.kind == kind
    assert shown(prompt.requirement()) == Counter(asked)
    assert shown(prompt.misreading()) == Counter(misread)


@pytest.mark.parametrize(
    ("text", "place", "misread"),
    [
        ("a red circle in the top left", "top-left", "top"),
        ("in the bottom right a red circle", "bottom-right", "top-left"),
        ("a red circle in the center", "center", "right"),
    ],
)
def test_places_of_single_objects(text: str, place: str, misread: str) -> None:
    prompt = ALL_PROMPTS[text]
    assert [item.place for item in prompt.requirement().objects] == [place]
    assert [item.place for item in prompt.misreading().objects] == [misread]


def test_counts_in_a_row_keep_the_row_when_misread() -> None:
    prompt = ALL_PROMPTS["two red circles in the top row"]
    assert [(item.number, item.place) for item in prompt.requirement().objects] == [(2, "top row")]
    assert [(item.number, item.place) for item in prompt.misreading().objects] == [(1, "top row")]


@pytest.mark.parametrize(
    ("where", "holding", "failing"),
    [
        ("left of", (3, 2), (1, 4)),
        ("right of", (2, 3), (3, 0)),
        ("above", (2, 3), (5, 3)),
        ("below", (7, 5), (1, 0)),
    ],
)
def test_relations(where: str, holding: tuple[int, int], failing: tuple[int, int]) -> None:
    assert stands(*holding, where)
    assert not stands(*failing, where)
    relation = ALL_PROMPTS[f"a red circle {where} a blue square"].requirement().relation
    assert relation is not None
    assert (relation.first, relation.second, relation.locality) == (0, 1, where)


def test_two_wordings_of_one_relation_are_one_combination() -> None:
    left = ALL_PROMPTS["a red circle left of a blue square"].requirement()
    right = ALL_PROMPTS["a blue square right of a red circle"].requirement()
    other = ALL_PROMPTS["a blue square left of a red circle"].requirement()
    assert left.combination() == right.combination() != other.combination()


def test_kinds_of_prompt_that_ask_for_the_same_are_one_combination() -> None:
    total = ALL_PROMPTS["two red circles and one more"].requirement()
    assert total.combination() == ALL_PROMPTS["three red circles"].requirement().combination()


def test_every_kind_has_forms_and_every_prompt_says_one_thing() -> None:
    assert {form.kind for form in forms().values()} == set(KINDS)
    texts = [text for form in forms().values() for params in form.combinations() for text in form.wordings(params)]
    assert len(texts) == len(set(texts))


def test_a_requirement_survives_json() -> None:
    for prompt in ALL_PROMPTS.values():
        assert Requirement.from_json(prompt.requirement().to_json()) == prompt.requirement()


def test_arranged_scenes_are_right_and_misreadings_are_wrong() -> None:
    rng = random.Random(0)
    prompts = [ALL_PROMPTS[text] for text in sorted(ALL_PROMPTS)]
    asked = [prompt.requirement() for prompt in prompts]
    right = judge_labels(scene_labels([arrange(item, rng) for item in asked]), asked)
    wrong = judge_labels(scene_labels([prompt.misread_scene(rng) for prompt in prompts]), asked)
    assert right.all_correct.all()
    assert not wrong.all_correct.any()


def test_misreadings_keep_apart_what_the_words_keep_apart() -> None:
    # Numbers, or sides, read as each other half of the time would leave no trace of the word to learn from.
    for form in forms().values():
        if form.kind not in ("count", "relation"):
            continue
        by_combination = {form.requirement(params).combination(): params for params in form.combinations()}
        for params in form.combinations():
            other = by_combination.get(form.misreading(params).combination())
            if other is not None:
                assert form.misreading(other).combination() != form.requirement(params).combination()


def test_arrangements_vary() -> None:
    rng = random.Random(0)
    requirement = ALL_PROMPTS["a red circle"].requirement()
    cells = Counter(cell for _ in range(900) for cell in arrange(requirement, rng))
    assert set(cells) == set(range(9))
    # 100 expected each, standard deviation 9.4: five of those.
    assert all(abs(number - 100) < 47 for number in cells.values())


@pytest.mark.parametrize(
    ("scene", "problem"),
    [
        ({}, "'objects' is missing"),
        ({"objects": [{"color": "purple", "shape": "circle", "number": 1}]}, "cannot draw"),
        ({"objects": [{"color": "red", "shape": "circle", "number": 0}]}, "must be 1 to 9"),
        ({"objects": [{"color": "red", "shape": "circle", "place": "hell"}]}, "'hell' is unknown"),
        ({"objects": [{"color": "red", "shape": "circle"}] * 2}, "names a kind twice"),
        (
            {
                "objects": [{"color": "red", "shape": "circle"}, {"color": "red", "shape": "square"}],
                "relation": {"first": 0, "second": 2, "locality": "above"},
            },
            "two different objects",
        ),
        (
            {
                "objects": [{"color": "red", "shape": "circle"}, {"color": "red", "shape": "square"}],
                "relation": {"first": 0, "second": 1, "locality": "inside"},
            },
            "'inside'",
        ),
    ],
)
def test_a_faulty_scene_is_refused_by_name(scene: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Requirement.from_json(scene)


def test_there_are_twelve_kinds_of_object() -> None:
    assert len(set(SMALL.kinds)) == 12
