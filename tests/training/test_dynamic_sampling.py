"""Dynamic sampling: which groups are replaced, by what, on how many ranks, and what is left when nothing helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from src.config.schema import LevelSamplingConfig, LevelShares
from src.rollout.levels import RolloutSettings, roll_out
from src.rollout.noise import group_keys
from src.training.loop import _measured, experience_metrics
from src.training.options.dynamic_sampling import keyed_records
from src.training.ranks import Ranks
from src.training.update import shown
from src.values import IMAGE, PLAN, PromptRecord
from tests.policies.tiny import tiny_policy
from tests.policies.toy import ToyPolicy
from tests.training.pieces import ADVANTAGES, ROLLOUT, assert_same_gradients, update_settings
from tests.training.variant_pieces import GROUP, RedUnlessDull, batch_of, gathered, stepped

MIXED = ("a red circle", "dull square", "two blue circle", "dull triangle")
FRESH = replace(ROLLOUT, image=LevelSamplingConfig(1.5))


class Source:
    """Further prompts: those of an attempt as listed, the same for every position; remembers what was asked."""

    def __init__(self, *attempts: str) -> None:
        self.attempts = attempts
        self.asked: list[tuple[int, int, list[int]]] = []

    def __call__(self, step: int, attempt: int, positions: Sequence[int]) -> list[PromptRecord]:
        self.asked.append((step, attempt, list(positions)))
        return [PromptRecord(self.attempts[attempt - 1]) for _ in positions]


def sampled(policy: Any, source: Any, prompts: Sequence[str] = MIXED, rounds: int = 2, **more: Any) -> Any:
    batch = more.pop("batch", None) or batch_of(prompts, step=5)
    return gathered(
        policy,
        batch,
        expert=RedUnlessDull(),
        refills=source,
        dynamic_sampling=True,
        max_refills=rounds,
        rollout=FRESH,
        **more,
    )


def test_groups_without_signal_are_replaced_with_keys_of_their_own() -> None:
    policy, source = tiny_policy(), Source("dull circle", "a green square")
    result = sampled(policy, source)
    assert source.asked == [(5, 1, [1, 3]), (5, 2, [1, 3])], "only what has no signal, as often as it has none"
    assert [record.prompt for record in result.records] == [MIXED[0], "a green square", MIXED[2], "a green square"]
    total = result.experience.report.total.view(-1, GROUP)
    assert (total.amax(1) > total.amin(1)).all()
    keys = group_keys(0, "train/refill2", 5, [1, 3], GROUP)
    alone = roll_out(policy, policy.decoder(), ["a green square"] * 2 * GROUP, keys, RolloutSettings.of(FRESH))
    rows = torch.tensor([*range(GROUP, 2 * GROUP), *range(3 * GROUP, 4 * GROUP)])
    assert torch.equal(result.rollouts.levels[IMAGE].ids[rows], alone.levels[IMAGE].ids)
    assert torch.equal(result.rollouts.pixels[rows], alone.pixels)
    assert [result.rollouts.plans[row] for row in rows] == alone.plans
    untouched = gathered(policy, batch_of(MIXED, step=5), expert=RedUnlessDull(), rollout=FRESH)
    rows = torch.tensor([*range(GROUP), *range(2 * GROUP, 3 * GROUP)])
    assert torch.equal(result.rollouts.levels[IMAGE].ids[rows], untouched.rollouts.levels[IMAGE].ids[rows]), (
        "groups with signal stay as they were rolled"
    )
    assert result.figures == {"refill/rounds": 2, "refill/groups": 4, "refill/dropped": 0}
    figures = experience_metrics(result)
    assert figures["reward"] == pytest.approx(untouched.experience.report.total.mean().item())
    assert figures["groups_without_signal"] == 0.5, "of the batch's own prompts"


def test_what_stays_without_signal_is_dropped_and_counted() -> None:
    """Its tokens count nowhere: loss, gradient and normaliser are those of the other groups alone, KL included."""
    policy = ToyPolicy(dtype=torch.float64)
    result = sampled(policy, Source("dull circle"), rounds=1)
    assert result.figures == {"refill/rounds": 1, "refill/groups": 2, "refill/dropped": 2}
    dropped = torch.tensor([False, True, False, True]).repeat_interleave(GROUP)
    for level in result.experience.levels.values():
        assert not level.mask[dropped].any()
        assert level.mask[~dropped].any(1).all()
    loss, ours, metrics, _ = stepped(policy, result.experience, update_settings())
    kept = batch_of([MIXED[0], MIXED[2]], step=5, positions=[0, 2])
    alone = gathered(policy, kept, expert=RedUnlessDull(), rollout=FRESH).experience
    want, theirs, want_metrics, _ = stepped(policy, alone, update_settings())
    assert loss == pytest.approx(want, rel=ADVANTAGES)
    assert_same_gradients(ours, theirs, ADVANTAGES)
    assert shown(metrics) == pytest.approx(shown(want_metrics), rel=ADVANTAGES, abs=ADVANTAGES)


@pytest.mark.parametrize("shares", [LevelShares(), LevelShares(1.0, 1.0)])
@pytest.mark.parametrize("algorithm", ["dapo", "gspo", "dr_grpo", "reinforce_pp_baseline"])
def test_a_batch_that_says_nothing_moves_nothing(algorithm: str, shares: Any) -> None:
    policy = tiny_policy()
    result = sampled(policy, Source("dull", "dull"), prompts=["dull circle", "dull square"], algorithm=algorithm)
    assert result.figures["refill/dropped"] == 2
    settings = replace(update_settings(), level_shares=shares)
    loss, ours, _, _ = stepped(policy, result.experience, settings, algorithm=algorithm)
    assert loss == 0
    assert all(not gradient.any() for gradient in ours.values())


def test_no_round_only_drops() -> None:
    source = Source()
    result = sampled(ToyPolicy(), source, rounds=0)
    assert not source.asked
    assert result.figures == {"refill/rounds": 0, "refill/groups": 0, "refill/dropped": 2}


def test_the_tolerance_says_what_is_a_signal() -> None:
    result = sampled(ToyPolicy(), Source("a red circle"), rounds=1, signal_tolerance=1.0)
    assert result.figures == {"refill/rounds": 1, "refill/groups": 4, "refill/dropped": 4}


@pytest.mark.parametrize("algorithm", ["dapo", "reinforce_pp_baseline"])
def test_two_ranks_refill_as_one(algorithm: str) -> None:
    """Each refills its own places; the rewards that whole-batch advantages compare are those of both."""
    from tests.training.test_variants import as_two_ranks

    prompts = [f"{'dull' if index % 3 == 1 else 'a red'} circle" for index in range(6)]
    records = [PromptRecord(prompt) for prompt in ("a green square", "dull", "two blue circle", "one triangle")]

    def source(step: int, attempt: int, positions: Sequence[int]) -> list[PromptRecord]:
        return keyed_records(records, 0, step, attempt, positions)

    def run(batch: Any, ranks: Any) -> Any:
        return sampled(ToyPolicy(), source, batch=batch, algorithm=algorithm, rounds=1, ranks=ranks)

    whole, parts = as_two_ranks(prompts, run)
    assert [r.prompt for part in parts for r in part.records] == [r.prompt for r in whole.records]
    for name in (PLAN, IMAGE):
        together = torch.cat([part.experience.advantages[name] for part in parts])
        torch.testing.assert_close(together, whole.experience.advantages[name])
        counted = [part.experience.levels[name].mask.any(1) for part in parts]
        assert torch.equal(torch.cat(counted), whole.experience.levels[name].mask.any(1))
    both = Ranks(gather_named=lambda mine: [_measured(part) for part in parts])
    figures = experience_metrics(whole)
    # The group without signal in each half: both refill it, both in one round.
    assert (figures["refill/rounds"], figures["refill/groups"]) == (1, 2)
    for part in parts:
        assert experience_metrics(part, both) == figures
        assert experience_metrics(part)["reward"] != figures["reward"]


def test_further_prompts_are_a_function_of_where_they_will_stand() -> None:
    records = [PromptRecord(str(index)) for index in range(50)]
    whole = keyed_records(records, 7, 3, 1, range(200))
    assert keyed_records(records, 7, 3, 1, [150, 4]) == [whole[150], whole[4]]
    assert {record.prompt for record in whole} == {record.prompt for record in records}
    counts = [sum(record.prompt == str(index) for record in whole) for index in range(50)]
    assert max(counts) < 16, "uniform: 4 on average"
    for other in ((8, 3, 1), (7, 4, 1), (7, 3, 2)):
        assert keyed_records(records, *other, range(200)) != whole


def test_without_a_source_it_says_so() -> None:
    with pytest.raises(ValueError, match="no source of further prompts"):
        sampled(ToyPolicy(), None)
