"""Normalisation of each expert: against transcriptions in float64, other libraries and itself on several ranks."""

from __future__ import annotations

import copy
import random
import statistics
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src import algorithms
from src.rewards.ensemble import RewardEnsemble
from src.rewards.normalise import EPSILON, RunningStatistics, by_group
from src.values import RewardReport
from tests.rewards.toy import Brightness, Glare, NamedChannel

NAN = float("nan")
VALUES = st.floats(-100, 100, width=32)


def report_of(*columns: list[float]) -> RewardReport:
    """A report of named experts a, b, ... with these scores; NaN where one does not apply."""
    scores = torch.tensor(columns).T.contiguous()
    names = tuple("abcdef"[: len(columns)])
    return RewardReport(names, scores, ~scores.isnan(), torch.zeros(len(scores)))


def ensemble(
    normalise: str | dict[str, str], *, weights: dict[str, float] | None = None, count: int = 2
) -> RewardEnsemble:
    experts = {"abcdef"[place]: Brightness() for place in range(count)}
    return RewardEnsemble(experts, weights, normalise=normalise)


def trained(rewards: RewardEnsemble, report: RewardReport, group_size: int = 2) -> list[float]:
    return rewards.normalised(report, rewards.scale(report), group_size).total.tolist()


def test_none_leaves_the_report_as_it_is() -> None:
    report = report_of([0.1, 0.2], [0.3, 0.4])
    rewards = ensemble("none")
    assert rewards.scale(report) == {}
    assert rewards.normalised(report, {}, 2) is report


@given(groups=st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4))
def test_group_by_the_formula(groups: list[list[float]]) -> None:
    scores = torch.tensor(groups).flatten()
    got = by_group(scores, torch.ones_like(scores, dtype=torch.bool), 3)
    expected = [
        0.0 if len(set(group)) == 1 else (value - statistics.fmean(group)) / (statistics.stdev(group) + EPSILON)
        for group in groups
        for value in group
    ]
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


def test_group_of_one_expert_trains_as_grpo_does() -> None:
    """GRPO of the normalised reward is GRPO of the reward, up to the epsilon that is added twice."""
    scores = torch.rand(12, generator=torch.Generator().manual_seed(1)).tolist()
    rewards = ensemble("group", count=1)
    grpo = algorithms.load("grpo")
    twice = grpo.advantages(torch.tensor(trained(rewards, report_of(scores), 4)), 4)
    torch.testing.assert_close(twice, grpo.advantages(torch.tensor(scores), 4), atol=2e-3, rtol=0)


def test_group_and_reinforce_pp_are_gdpo() -> None:
    """arXiv 2601.05242, literally: each reward within its group, their weighted sum, that over the batch."""
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand(12, generator=generator), 40 * torch.rand(12, generator=generator)
    rewards = ensemble("group", weights={"a": 1.0, "b": 0.5})
    total = torch.tensor(trained(rewards, report_of(a.tolist(), b.tolist()), 4))
    got = algorithms.load("reinforce_pp").advantages(total, 4)

    def within(values: Tensor) -> Tensor:
        groups = values.double().view(3, 4)
        return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()

    summed = within(a) + 0.5 * within(b)
    gdpo = (summed - summed.mean()) / (summed.std() + 1e-4)
    torch.testing.assert_close(got.double(), gdpo, atol=1e-5, rtol=0)
    # Which the sum of the rewards as they are is not: there b outweighs a by its scale alone.
    plain = algorithms.load("reinforce_pp").advantages(a + 0.5 * b, 4)
    assert (plain - got).abs().max() > 0.1


def test_rewards_that_add_up_to_the_same_stay_apart() -> None:
    """The paper's case: (0, 1), (0, 2) have one GRPO advantage and two of GDPO."""
    rewards = ensemble("group")
    one, both = report_of([0.0, 1.0], [0.0, 0.0]), report_of([0.0, 1.0], [0.0, 1.0])
    assert trained(rewards, one)[1] * 2 == pytest.approx(trained(rewards, both)[1])
    grpo = algorithms.load("grpo")
    assert grpo.advantages(torch.tensor([0.0, 1.0]), 2).tolist() == pytest.approx(
        grpo.advantages(torch.tensor([0.0, 2.0]), 2).tolist(), abs=1e-3
    )


@pytest.mark.parametrize("normalise", ["group", "batch", "running"])
def test_scores_that_never_differ_give_exactly_zero(normalise: str) -> None:
    report = report_of([0.1] * 6, [0.7, 0.7, 0.1, 0.1, 0.3, 0.3])
    rewards = ensemble(normalise, weights={"b": 0})
    assert trained(rewards, report) == [0.0] * 6
    assert trained(rewards, report) == [0.0] * 6, "running statistics of it included"


def test_batch_is_over_the_applicable_rows() -> None:
    a, b = [1.0, 2.0, 4.0, 5.0], [7.0, 9.0, NAN, NAN]
    got = trained(ensemble("batch"), report_of(a, b))
    za = [(value - 3.0) / (statistics.stdev(a) + EPSILON) for value in a]
    zb = [(value - 8.0) / (statistics.stdev(b[:2]) + EPSILON) for value in b[:2]]
    assert got == pytest.approx([za[0] + zb[0], za[1] + zb[1], za[2], za[3]], abs=1e-6)


def test_an_expert_of_the_other_direction_is_normalised_and_turned() -> None:
    rewards = RewardEnsemble({"a": Brightness(), "b": Glare()}, normalise="batch")
    both = trained(rewards, report_of([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]))
    assert both == pytest.approx([0.0] * 4, abs=1e-6), "what one gains the other takes off"


@given(values=st.lists(VALUES, min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_running_statistics_of_parts_are_those_of_the_whole(values: list[float], cuts: list[int]) -> None:
    running = RunningStatistics()
    places = [0, *sorted(cut for cut in cuts if cut < len(values)), len(values)]
    for first, last in pairwise(places):
        running.update(torch.tensor(values[first:last]))
    assert running.count == len(values)
    assert running.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    expected = statistics.stdev(values) if len(values) > 1 else 0.0
    assert running.std == pytest.approx(expected, abs=1e-6, rel=1e-9)


def test_running_uses_all_that_was_seen_the_present_batch_included() -> None:
    rewards = ensemble("running", count=1)
    first, second = [1.0, 2.0], [5.0, 9.0]
    assert trained(rewards, report_of(first)) == pytest.approx(
        [(value - 1.5) / (statistics.stdev(first) + EPSILON) for value in first], abs=1e-6
    )
    seen = first + second
    assert trained(rewards, report_of(second)) == pytest.approx(
        [(value - 4.25) / (statistics.stdev(seen) + EPSILON) for value in second], abs=1e-6
    )


def test_running_statistics_go_on_from_a_checkpoint_to_the_last_bit() -> None:
    rng = random.Random(4)
    batches = [report_of([rng.random() for _ in range(8)], [rng.random() for _ in range(8)]) for _ in range(6)]
    whole, interrupted = ensemble("running"), ensemble("running")
    for batch in batches[:3]:
        trained(whole, batch)
        trained(interrupted, batch)
    resumed = ensemble("running")
    resumed.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    for batch in batches[3:]:
        assert trained(resumed, batch) == trained(whole, batch)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("normalise", ["batch", "running"])
def test_two_ranks_normalise_as_one(normalise: str) -> None:
    whole = report_of([0.1, 0.9, 0.3, 0.5], [1.0, 2.0, NAN, NAN])
    halves = [whole.rows(torch.tensor([0, 1])), whole.rows(torch.tensor([2, 3]))]
    alone, ranks = ensemble(normalise), [ensemble(normalise), ensemble(normalise)]
    expected = trained(alone, whole)
    parts: list[Tensor] = []
    for half in halves:
        ensemble(normalise).scale(half, lambda mine: parts.append(mine) or [mine])  # type: ignore[func-returns-value]
    got = [
        value
        for rank, half in zip(ranks, halves, strict=True)
        for value in rank.normalised(half, rank.scale(half, lambda mine: parts), 2).total.tolist()
    ]
    assert got == expected
    assert ranks[0].state_dict() == ranks[1].state_dict() == alone.state_dict()


def test_ranks_are_asked_only_where_something_is_normalised_over_them() -> None:
    def nobody(mine: Tensor) -> list[Tensor]:
        raise AssertionError("all ranks would have to call")

    for normalise in ("none", "group"):
        ensemble(normalise).scale(report_of([0.1, 0.2], [0.3, 0.4]), nobody)


@pytest.mark.parametrize(
    ("normalise", "problem"),
    [
        ("gruop", r"rewards\.normalise=gruop: expected one of none, group, batch, running"),
        ({"brightness": "all"}, r"rewards\.normalise\.brightness=all: expected one of"),
        ({"brightnes": "group"}, r"rewards\.normalise\.brightnes: no such expert; there are brightness, named_channel"),
    ],
)
def test_a_choice_there_is_not_names_the_key(normalise: str | dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RewardEnsemble([Brightness(), NamedChannel()], normalise=normalise)
