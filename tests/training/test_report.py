"""Which prompts a report shows pictures of."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.training.callbacks.report import spread
from src.values import PromptRecord


def records(kinds: list[int]) -> list[PromptRecord]:
    """So many prompts of each kind."""
    return [PromptRecord(f"{kind} {i}", str(kind)) for kind, number in enumerate(kinds) for i in range(number)]


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(0, 40))
def test_no_prompt_is_shown_twice_and_all_are_where_there_is_room(kinds: list[int], number: int) -> None:
    given_records = records(kinds)
    chosen = spread(given_records, number)
    assert len({record.prompt for record in chosen}) == len(chosen) <= number
    if number >= len(given_records):
        assert {record.prompt for record in chosen} == {record.prompt for record in given_records}


@pytest.mark.parametrize(("kinds", "number", "shown"), [([9, 9, 9], 6, [2, 2, 2]), ([20, 1], 10, [5, 1])])
def test_kinds_get_equal_shares_as_far_as_they_reach(kinds: list[int], number: int, shown: list[int]) -> None:
    counted = Counter(record.task_type for record in spread(records(kinds), number))
    assert [counted[str(kind)] for kind in range(len(kinds))] == shown


def test_a_share_is_taken_from_all_of_a_kind() -> None:
    assert [record.prompt for record in spread(records([10]), 5)] == ["0 0", "0 2", "0 4", "0 6", "0 8"]
