"""The guard against reward hacking and its neighbours, on synthetic series."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from src.training.callbacks import RewardWatch
from src.training.callbacks.reward_watch import NEVER_VARIES_AFTER, trend
from src.training.held_out import Sample, told_nothing

NOISE = 0.1


def watched(
    steps: int,
    slopes: dict[str, float],
    seed: int = 0,
    watch: RewardWatch | None = None,
    signs: dict[str, float] | None = None,
) -> RewardWatch:
    """A watch that saw `steps` batches of noisy figures; slopes: change over all steps, by name ("reward" too)."""
    rng = random.Random(seed)
    watch = watch or RewardWatch(window=60)
    monitors = [name for name in slopes if name != "reward"]
    for step in range(steps):
        values = {name: slope * step / steps + rng.gauss(0, NOISE) for name, slope in slopes.items()}
        figures = {"reward": values.pop("reward"), **{f"{name}/mean": value for name, value in values.items()}}
        watch.observe(step, figures, dict.fromkeys(monitors, 1.0) | (signs or {}), monitors, {})
    return watch


def test_a_reward_that_rises_while_a_monitor_falls_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    watch = watched(120, {"reward": 1.0, "taste": -1.0, "calm": 0.0})
    assert list(watch.warnings) == ["hacking/taste"]
    told = capsys.readouterr().out
    assert told.count("warning: ") == 1
    assert "monitor 'taste' got worse" in told


@pytest.mark.parametrize(
    "slopes",
    [
        {"reward": 1.0, "taste": 1.0},
        {"reward": 1.0, "taste": 0.0},
        {"reward": 0.0, "taste": -1.0},
        {"reward": -1.0, "taste": -1.0},
    ],
    ids=["both rise", "monitor flat", "reward flat", "both fall"],
)
@pytest.mark.parametrize("seed", range(5))
def test_nothing_else_is_hacking(slopes: dict[str, float], seed: int) -> None:
    assert watched(120, slopes, seed).warnings == {}


def test_a_monitor_whose_lower_scores_are_better_gets_worse_by_rising() -> None:
    signs = {"glare": -1.0}
    assert list(watched(120, {"reward": 1.0, "glare": 1.0}, signs=signs).warnings) == ["hacking/glare"]
    assert watched(120, {"reward": 1.0, "glare": -1.0}, signs=signs).warnings == {}


def test_nothing_is_said_before_the_window_is_full() -> None:
    assert watched(59, {"reward": 2.0, "taste": -2.0}).warnings == {}


def test_a_monitor_that_applies_to_some_batches_only() -> None:
    watch, rng = RewardWatch(window=40), random.Random(1)
    for step in range(40):
        figures = {"reward": step + rng.gauss(0, 1)} | ({"rare/mean": -step + rng.gauss(0, 1)} if step % 3 else {})
        watch.observe(step, figures, {"rare": 1.0}, ["rare"], {})
    assert list(watch.warnings) == ["hacking/rare"]


def test_its_state_survives_a_resume() -> None:
    undisturbed = watched(120, {"reward": 1.0, "taste": -1.0})
    half = RewardWatch(window=60)
    half.load_state_dict(undisturbed.state_dict())
    watched(120, {"reward": 1.0, "taste": -1.0}, watch=half)
    assert half.warnings == undisturbed.warnings, "said once a run, not once a sitting"


@given(values=st.lists(st.floats(-10, 10), min_size=5, max_size=30))
def test_the_trend_is_that_of_least_squares(values: list[float]) -> None:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    slope, offset = np.polyfit(x, y, 1)
    rest = ((y - slope * x - offset) ** 2).sum()
    error = math.sqrt(rest / (len(values) - 2) / ((x - x.mean()) ** 2).sum())
    assume(error > 1e-6)
    assert trend(values) == pytest.approx(slope / error, rel=1e-6, abs=1e-9)


def test_trends_at_their_limits() -> None:
    assert trend([1.0, 2.0, 3.0, 4.0, 5.0]) == math.inf
    assert trend([5.0, 4.0, 3.0, 2.0, 1.0]) == -math.inf
    assert trend([1.0] * 6) == 0.0
    assert math.isnan(trend([1.0, 2.0, 3.0, 4.0]))
    assert math.isnan(trend([math.nan] * 6 + [1.0, 2.0, 3.0, 4.0, 5.0]))


def spread(watch: RewardWatch, *deviations: float | None) -> dict[str, str]:
    for step, deviation in enumerate(deviations):
        figures = {} if deviation is None else {"idle/group_std": deviation}
        watch.observe(step, figures, {"idle": 1.0}, [], {})
    return watch.warnings


def test_an_expert_that_never_varies_is_told_once() -> None:
    zeros = [0.0] * NEVER_VARIES_AFTER
    assert spread(RewardWatch(), *zeros[1:]) == {}
    warnings = spread(RewardWatch(), *zeros, *zeros)
    assert list(warnings) == ["constant/idle"]
    assert f"step {NEVER_VARIES_AFTER - 1}: expert 'idle' gave all rollouts" in warnings["constant/idle"]
    assert spread(RewardWatch(), *zeros[1:], 0.1, *zeros, *zeros) == {}, "it varied"
    assert spread(RewardWatch(), *zeros[1:], *[None] * 50) == {}, "batches without it say nothing of it"


def test_an_expert_that_fails_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    watch = RewardWatch()
    for step in range(3):
        watch.observe(step, {"clip/failed": 0.5}, {"clip": 1.0}, [], {"clip": "out of memory"})
    assert capsys.readouterr().out.count("expert 'clip' left groups it failed on: out of memory") == 1


def test_an_expert_that_applies_to_nothing_is_told_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    watch = RewardWatch()
    watch.silent_before({"detector": "expert 'detector' applies to no training prompt"})
    assert watch.warnings == {"silent/detector": "expert 'detector' applies to no training prompt"}
    assert "applies to no training prompt" in capsys.readouterr().out
    watch.validated(0, {"detector": "expert 'detector' applies to none of the 2 pictures"})
    assert capsys.readouterr().out == "", "it is said once"


def sample(**scores: float) -> Sample:
    return Sample(0, "one", "a cat", "a plan", True, None, scores, {})


def test_an_expert_that_tells_nothing_apart_in_a_validation_is_told() -> None:
    samples = [sample(flat=0.5, judge=0.5), sample(flat=0.5, judge=0.75)]
    told = told_nothing(samples, ["flat", "judge", "absent"], {})
    assert told == {
        "flat": "expert 'flat' gave all 2 pictures the same score, 0.5",
        "absent": "expert 'absent' applies to none of the 2 pictures",
    }
    watch = RewardWatch()
    watch.validated(20, told)
    watch.validated(40, told)
    assert list(watch.warnings.values()) == [f"validation at step 20: {sentence}" for sentence in told.values()]
    # One picture says nothing of variation, and a failure is told elsewhere.
    assert told_nothing([sample(judge=0.5)], ["judge", "broken"], {"broken": "out of memory"}) == {}


def test_what_was_said_before_a_resume_is_not_lost_or_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = RewardWatch(), RewardWatch()
    first.validated(0, {"flat": "expert 'flat' says nothing"})
    second.silent_before({"detector": "expert 'detector' applies to no training prompt"})
    second.load_state_dict(first.state_dict())
    capsys.readouterr()
    second.validated(20, {"flat": "expert 'flat' says nothing"})
    assert capsys.readouterr().out == ""
    assert set(second.warnings) == {"alike/flat", "silent/detector"}
