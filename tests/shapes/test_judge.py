"""The judge against hand-made pictures, one aspect at a time."""

from __future__ import annotations

import inspect
import math
import time

import pytest
import torch

from src.rewards.experts.shapes_judge import ShapesJudge
from src.shapes.judge import ASPECTS, judge, recognise
from src.shapes.scenes import render
from src.shapes.worlds import SMALL, ObjectKind
from src.values import PromptRecord

RED_CIRCLE, RED_SQUARE = ObjectKind("red", "circle"), ObjectKind("red", "square")
BLUE_SQUARE, BLUE_CIRCLE = ObjectKind("blue", "square"), ObjectKind("blue", "circle")
NAN = math.nan


def asked(*objects: tuple[str, str, int], place: str | None = None, relation: str | None = None) -> PromptRecord:
    """A record that asks for (colour, shape, number); a relation stands between the first two."""
    items = [{"color": color, "shape": shape, "number": number} for color, shape, number in objects]
    if place is not None:
        items = [{**item, "place": place} for item in items]
    scene: dict[str, object] = {"objects": items}
    if relation is not None:
        scene["relation"] = {"first": 0, "second": 1, "locality": relation}
    return PromptRecord("a picture", scene=scene)


ONE = asked(("red", "circle", 1))
TWO = asked(("red", "circle", 2))
PAIR = asked(("red", "circle", 1), ("blue", "square", 1))
MANY = asked(("red", "circle", 2), ("blue", "square", 1))
LEFT = asked(("red", "circle", 1), ("blue", "square", 1), relation="left of")
CORNER = asked(("red", "circle", 1), place="top-left")
ROW = asked(("red", "circle", 2), place="top row")

CASES = {
    # name: (record, scene, presence, colour, shape, count, relation, no_extra, all_correct)
    "one right": (ONE, {4: RED_CIRCLE}, 1, 1, 1, NAN, NAN, 1, True),
    "nothing drawn": (ONE, {}, 0, 0, 0, NAN, NAN, 1, False),
    "wrong colour": (ONE, {4: BLUE_CIRCLE}, 0, 0, 1, NAN, NAN, 0, False),
    "wrong shape": (ONE, {4: RED_SQUARE}, 0, 1, 0, NAN, NAN, 0, False),
    "one too many": (ONE, {4: RED_CIRCLE, 5: RED_CIRCLE}, 1, 1, 1, NAN, NAN, 0, False),
    "another thing too": (ONE, {4: RED_CIRCLE, 5: BLUE_SQUARE}, 1, 1, 1, NAN, NAN, 0, False),
    "two right": (TWO, {4: RED_CIRCLE, 8: RED_CIRCLE}, 1, 1, 1, 1, NAN, 1, True),
    "one of two": (TWO, {4: RED_CIRCLE}, 1, 0.5, 0.5, 0.5, NAN, 1, False),
    "three for two": (TWO, {0: RED_CIRCLE, 1: RED_CIRCLE, 2: RED_CIRCLE}, 1, 1, 1, 0.5, NAN, 0.5, False),
    "five for two": (TWO, dict.fromkeys(range(5), RED_CIRCLE), 1, 1, 1, 0, NAN, 0, False),
    "pair right": (PAIR, {0: RED_CIRCLE, 1: BLUE_SQUARE}, 1, 1, 1, NAN, NAN, 1, True),
    "colours swapped": (PAIR, {0: BLUE_CIRCLE, 1: RED_SQUARE}, 0, 1, 1, NAN, NAN, 0, False),
    "colour leaked": (PAIR, {0: RED_CIRCLE, 1: RED_SQUARE}, 0.5, 0.5, 1, NAN, NAN, 0.5, False),
    "count over two kinds": (MANY, {0: RED_CIRCLE, 1: BLUE_SQUARE}, 1, 2 / 3, 2 / 3, 0.75, NAN, 1, False),
    "left is left": (LEFT, {3: RED_CIRCLE, 2: BLUE_SQUARE}, 1, 1, 1, NAN, 1, 1, True),
    "left is right": (LEFT, {2: RED_CIRCLE, 3: BLUE_SQUARE}, 1, 1, 1, NAN, 0, 1, False),
    "left is one above": (LEFT, {1: RED_CIRCLE, 4: BLUE_SQUARE}, 1, 1, 1, NAN, 0, 1, False),
    "left of nothing": (LEFT, {3: RED_CIRCLE}, 0.5, 0.5, 0.5, NAN, 0, 1, False),
    "in its corner": (CORNER, {0: RED_CIRCLE}, 1, 1, 1, NAN, 1, 1, True),
    "in another place": (CORNER, {1: RED_CIRCLE}, 1, 1, 1, NAN, 0, 1, False),
    "in its row": (ROW, {0: RED_CIRCLE, 2: RED_CIRCLE}, 1, 1, 1, 1, 1, 1, True),
    "half in its row": (ROW, {0: RED_CIRCLE, 4: RED_CIRCLE}, 1, 1, 1, 1, 0.5, 1, False),
}


@pytest.mark.parametrize("name", CASES)
def test_aspects_by_hand(name: str) -> None:
    record, scene, *expected, all_correct = CASES[name]
    judgement = judge(render([scene]), [record])
    found = [judgement.aspects[aspect].item() for aspect in ASPECTS]
    assert found == pytest.approx(expected, nan_ok=True)
    assert judgement.all_correct.item() is all_correct


def test_a_batch_is_judged_as_its_rows() -> None:
    records = [case[0] for case in CASES.values()]
    pixels = render([case[1] for case in CASES.values()])
    batch = judge(pixels, records)
    for row, record in enumerate(records):
        alone = judge(pixels[row : row + 1], [record])
        assert torch.equal(alone.all_correct[0], batch.all_correct[row])
        for aspect in ASPECTS:
            torch.testing.assert_close(alone.aspects[aspect][0], batch.aspects[aspect][row], equal_nan=True)


@pytest.mark.parametrize("where", ["right of", "above", "below"])
def test_the_other_relations(where: str) -> None:
    record = asked(("red", "circle", 1), ("blue", "square", 1), relation=where)
    first, second = {"right of": (2, 3), "above": (2, 3), "below": (8, 3)}[where]
    pixels = render([{first: RED_CIRCLE, second: BLUE_SQUARE}, {second: RED_CIRCLE, first: BLUE_SQUARE}])
    assert judge(pixels, [record, record]).aspects["relation"].tolist() == [1, 0]


def test_every_object_of_a_kind_has_to_stand_right() -> None:
    pixels = render([{0: RED_CIRCLE, 5: RED_CIRCLE, 4: BLUE_SQUARE}])
    assert judge(pixels, [LEFT]).aspects["relation"].item() == 0


def test_a_cell_that_shows_nothing_clear_is_an_extra_object() -> None:
    pixels = render([{4: RED_CIRCLE}])
    pixels[0, :, 16:24, 16:24] = torch.tensor([0.5, 0.1, 0.6])[:, None, None]
    assert recognise(pixels)[0].tolist() == [SMALL.empty] * 4 + [SMALL.kind_index[RED_CIRCLE]] + [SMALL.empty] * 3 + [
        SMALL.unclear
    ]
    judgement = judge(pixels, [ONE])
    assert judgement.aspects["no_extra"].item() == 0
    assert not judgement.all_correct.item()


def test_half_a_circle_and_half_a_square_is_unclear() -> None:
    pixels = render([{4: RED_CIRCLE}])
    pixels[:, :, 12:16, 8:16] = render([{4: RED_SQUARE}])[:, :, 12:16, 8:16]
    assert recognise(pixels)[0, 4] == SMALL.unclear


def test_small_errors_of_a_decoder_do_not_matter_and_large_ones_do() -> None:
    clean = render([{4: RED_CIRCLE, 0: BLUE_SQUARE}])
    noise = torch.randn(clean.shape)
    assert torch.equal(recognise((clean + 0.03 * noise).clamp(0, 1)), recognise(clean))
    assert (recognise((clean + 0.5 * noise).clamp(0, 1)) == SMALL.unclear).all()


def test_pixels_that_are_no_numbers_are_unclear() -> None:
    pixels = torch.full((1, 3, 24, 24), NAN)
    assert (recognise(pixels) == SMALL.unclear).all()


def test_only_pixels_and_the_scene_are_seen() -> None:
    assert list(inspect.signature(judge).parameters) == ["pixels", "records", "world"]
    record = PromptRecord("three green squares", task_type="count", nouns=("green square",), scene=ONE.scene)
    judgement, plain = judge(render([{4: RED_CIRCLE}]), [record]), judge(render([{4: RED_CIRCLE}]), [ONE])
    assert judgement.all_correct.item()
    for aspect in ASPECTS:
        torch.testing.assert_close(judgement.aspects[aspect], plain.aspects[aspect], equal_nan=True)


def test_other_image_sizes_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="expected \\(N, 3, 24, 24\\)"):
        recognise(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="2 images but 1 records"):
        judge(torch.zeros(2, 3, 24, 24), [ONE])


def test_the_reward_is_the_mean_of_what_applies_and_the_bonus() -> None:
    expert = ShapesJudge(bonus=0.4)
    scores, details = expert.score(render([{4: RED_CIRCLE}, {4: RED_CIRCLE, 5: RED_CIRCLE}]), [ONE, ONE])
    # Right: every aspect 1. One too many: presence, colour, shape 1, no_extra 0.
    assert scores.tolist() == pytest.approx([1.0, 0.6 * 0.75])
    assert details["all_correct"].tolist() == [1, 0]
    assert set(details) == {"all_correct", *ASPECTS}
    assert all(value.dtype == scores.dtype == torch.float32 for value in details.values())


def test_nothing_beats_the_right_picture() -> None:
    scores, details = ShapesJudge().score(
        render([case[1] for case in CASES.values()]), [case[0] for case in CASES.values()]
    )
    right = details["all_correct"] == 1
    assert (scores[right] == 1).all()
    assert scores[~right].max() < 0.5


def test_the_expert_applies_where_a_scene_is_known() -> None:
    expert = ShapesJudge()
    assert expert.applicable(ONE)
    assert not expert.applicable(PromptRecord("a cat"))


def test_a_bonus_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="bonus 2"):
        ShapesJudge(bonus=2)


def test_sixty_four_images_are_judged_in_milliseconds() -> None:
    records = [case[0] for case in CASES.values()] * 3
    pixels = render([case[1] for case in CASES.values()] * 3)
    judge(pixels, records)
    fastest = math.inf
    for _ in range(5):
        start = time.perf_counter()
        judge(pixels, records)
        fastest = min(fastest, time.perf_counter() - start)
    # About 2 ms on one thread; the bound leaves room for a busy machine.
    assert fastest < 0.02
