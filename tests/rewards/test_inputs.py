"""What is not pictures in [0, 1] with their records is refused in words, wherever an expert can be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from src.build import served_experts
from src.rewards.base import PIXEL_TOLERANCE, RewardError, WrongInput
from src.rewards.ensemble import RewardEnsemble
from src.rewards.experts.shapes_judge import ShapesJudge
from src.rewards.local import LocalExperts
from src.values import PromptRecord
from tests.rewards.toy import Brightness, about

RIGHT = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
RECORDS = [about("red"), about("cat")]


def with_one(value: float) -> Tensor:
    """The right pictures, one pixel of the second replaced."""
    pixels = RIGHT.clone()
    pixels[1, 2, 3, 1] = value
    return pixels


# How experts are asked: through the ensemble, those of a process (a server's worker holds them so), one by itself.
DOORS: dict[str, Callable[[Any, Any], object]] = {
    "ensemble": lambda pixels, records: RewardEnsemble([Brightness()])(pixels, records),
    "ensemble that drops": lambda pixels, records: RewardEnsemble([Brightness()], on_error="drop")(pixels, records),
    "local experts": lambda pixels, records: LocalExperts({"b": Brightness()}).score(pixels, records, ("b",)),
    "served": lambda pixels, records: served_experts(SERVED, [], "cpu").score(pixels, records, ("judge",)),
    "update": lambda pixels, records: Brightness().update(pixels, records),
    "forward": lambda pixels, records: Brightness()(pixels, records),
}
SERVED = {"experts": {"judge": {"_target_": "src.rewards.experts.shapes_judge.ShapesJudge"}}, "devices": {}}
WRONG: dict[str, tuple[Any, Any, str]] = {
    "-1..1": (
        RIGHT * 2 - 1,
        RECORDS,
        r"values from -\d.* as if in -1\.\.1; use \(pixels \+ 1\) / 2; expected \[0, 1\]",
    ),
    "0..255": (RIGHT * 255, RECORDS, r"values from .* to 2\d\d, as if in 0\.\.255; divide by 255"),
    "a NaN": (with_one(float("nan")), RECORDS, r"image 1 has NaN or infinite values.*'a cat picture'"),
    "an infinity": (with_one(float("inf")), RECORDS, r"image 1 has NaN or infinite values"),
    "minus infinity": (with_one(float("-inf")), RECORDS, r"image 1 has NaN or infinite values"),
    "a pixel above 1": (with_one(1.1), RECORDS, r"image 1 has values from .* to 1\.1"),
    "a pixel below 0": (with_one(-0.1), RECORDS, r"image 1 has values from -0\.1"),
    "channels last": (RIGHT.permute(0, 2, 3, 1), RECORDS, r"channels are last, permute\(0, 3, 1, 2\)"),
    "one channel": (RIGHT[:, :1], RECORDS, r"\(2, 1, 4, 4\); expected float32 \(N, 3, H, W\) in \[0, 1\]"),
    "one picture": (RIGHT[0], RECORDS[:1], r"\(3, 4, 4\); expected"),
    "whole numbers": ((RIGHT * 255).to(torch.uint8), RECORDS, r"torch\.uint8 .*divide whole numbers by 255"),
    "float64": (RIGHT.double(), RECORDS, r"torch\.float64 .*expected float32"),
    "bfloat16": (RIGHT.bfloat16(), RECORDS, r"torch\.bfloat16 .*expected float32"),
    "another count": (RIGHT, RECORDS[:1], r"2 images for 1 prompt records; expected equal"),
    "no picture": (RIGHT[:0], [], r"0 images for 0 prompt records"),
    "no pixel": (RIGHT[:, :, :0], RECORDS, r"the pictures have no pixels"),
    "swapped": (RECORDS, RIGHT, r"pixels: list; pixels and records are swapped; expected"),
    "an array": (RIGHT.numpy(), RECORDS, r"pixels: ndarray; expected"),
    "bare prompts": (RIGHT, ["a red picture", "a cat picture"], r"records: hold a str; expected"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_are_refused_with_what_is_expected(door: str, what: str) -> None:
    pixels, records, words = WRONG[what]
    with pytest.raises(WrongInput, match=words) as caught:
        DOORS[door](pixels, records)
    assert isinstance(caught.value, RewardError), "commands tell it as what it is"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("door", DOORS)
def test_right_inputs_pass_at_both_ends(door: str) -> None:
    """Black, white, and what rounding may add to them."""
    pixels = RIGHT.clone()
    pixels[0], pixels[1] = -0.9 * PIXEL_TOLERANCE, 1 + 0.9 * PIXEL_TOLERANCE
    DOORS[door](pixels.clamp(0, 1) if door in ("update", "forward") else pixels, RECORDS)


def test_a_right_picture_on_another_scale_has_no_score() -> None:
    """It scored 0.0 in -1..1, about 0.1 in 0..255 and 0.0 with a NaN, without a word."""
    from src.shapes.scenes import render
    from tests.shapes.test_judge import RED_CIRCLE

    record, pixels = PromptRecord("a red circle"), render([{4: RED_CIRCLE}])
    ensemble = RewardEnsemble({"judge": ShapesJudge()})
    assert ensemble(pixels, [record]).total.item() == pytest.approx(1.0)
    for wrong in (pixels * 2 - 1, pixels * 255, pixels.masked_fill(pixels == pixels.max(), float("nan"))):
        with pytest.raises(WrongInput):
            ensemble(wrong, [record])


@pytest.mark.parametrize("scores", [torch.tensor([0.5, float("nan")]), torch.tensor([0.5, 1.5]), torch.zeros(3)])
def test_scores_of_a_single_expert_are_checked_too(scores: Tensor) -> None:
    class Returns(Brightness):
        def score(self, pixels: Tensor, records: Any) -> Any:
            return scores

    with pytest.raises(RewardError, match="brightness"):
        Returns().update(RIGHT, RECORDS)
