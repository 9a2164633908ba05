"""What a comparison reads of a run."""

from __future__ import annotations

from src.compare.records import PromptScores, by_prompt


def test_a_prompts_samples_are_one_value_and_what_does_not_apply_is_left_out() -> None:
    first = (
        PromptScores(0, "a", {"reward": 1.0, "count": 0.5}),
        PromptScores(0, "a", {"reward": 0.0, "count": 1.0}),
        PromptScores(1, "b", {"reward": 0.25}),
    )
    second = (PromptScores(1, "b", {"reward": 0.75}),)
    assert by_prompt([first], "reward") == {(0, "a"): 0.5, (1, "b"): 0.25}
    assert by_prompt([first], "count") == {(0, "a"): 0.75}
    assert by_prompt([first, second], "reward") == {(0, "a"): 0.5, (1, "b"): 0.5}
