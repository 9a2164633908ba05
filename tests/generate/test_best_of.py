"""Best-of-N picks what `max` picks, in the order of candidates, and says what it chose from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.config.errors import UserError
from src.generate.best_of import BestOf, check_best_of

SCORES = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.25, 1.0]))


def entries(scores: list[float | None]) -> list[tuple[dict[str, Any], int]]:
    return [
        ({"prompt": "p", "scores": {} if score is None else {"judge": score}}, place)
        for place, score in enumerate(scores)
    ]


@given(st.data(), st.integers(2, 5), st.integers(1, 3), st.sampled_from([1.0, -1.0]))
def test_the_first_of_the_best_is_kept(data: st.DataObject, of: int, pictures: int, sign: float) -> None:
    groups = [data.draw(st.lists(SCORES, min_size=of, max_size=of).filter(any_score)) for _ in range(pictures)]
    flat = [score for group in groups for score in group]
    kept = list(BestOf(of, "judge", sign).kept(entries(flat)))
    assert len(kept) == pictures
    for number, (group, (entry, place)) in enumerate(zip(groups, kept, strict=True)):
        best = max(sign * score for score in group if score is not None)
        wanted = next(place for place, score in enumerate(group) if score is not None and sign * score == best)
        assert entry["candidate"] == wanted
        assert place == number * of + wanted
        assert entry["best_of"] == {"of": of, "by": "judge", "scores": group}


def any_score(group: list[float | None]) -> bool:
    return any(score is not None for score in group)


def test_one_candidate_is_left_as_it_is() -> None:
    given_entries = entries([None, 1.0])
    assert list(BestOf().kept(given_entries)) == given_entries


def test_nothing_to_choose_by_is_an_error() -> None:
    with pytest.raises(UserError, match="no expert has a score for 'p'"):
        list(BestOf(2).kept(entries([0.5, 1.0])))
    with pytest.raises(UserError, match="judge has no score"):
        list(BestOf(2, "judge").kept(entries([None, None])))
    with pytest.raises(ValueError, match="best_of=0"):
        BestOf(0)


def test_the_expert_that_chooses_must_be_there() -> None:
    check_best_of(1, None, ["a"])
    check_best_of(2, "a", ["a", "b"])
    with pytest.raises(UserError, match="there are a, b"):
        check_best_of(2, "c", ["a", "b"])
