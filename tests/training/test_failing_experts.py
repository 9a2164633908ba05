"""`rewards.on_error=drop` in a step: a failing expert leaves whole groups; groups left bare teach nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from src.rewards.base import RewardError
from src.rewards.ensemble import RewardEnsemble
from src.rollout.levels import RolloutSettings
from src.training.held_out import EvaluationSettings, evaluate
from src.training.loop import _measured, experience_metrics
from src.training.ranks import Ranks
from src.training.update import shown
from src.values import IMAGE, PLAN, PromptRecord
from tests.policies.toy import ToyPolicy
from tests.training.experts import FailsFor, Green
from tests.training.pieces import ADVANTAGES, ROLLOUT, assert_same_gradients, update_settings
from tests.training.runs import metrics_rows, overrides, rollout_lines, run_process, train, write_world
from tests.training.test_variants import as_two_ranks
from tests.training.variant_pieces import GROUP, batch_of, gathered, stepped

MIXED = ("a red circle", "broken square", "two blue circle", "broken triangle")
BROKEN = torch.tensor([False, True, False, True]).repeat_interleave(GROUP)


def ensemble(*, alone: bool = True, **options: Any) -> RewardEnsemble:
    """An expert that fails for broken prompts; with another one unless it is `alone`."""
    experts: list[Any] = [FailsFor("broken")] if alone else [FailsFor("broken"), Green()]
    return RewardEnsemble(experts, **{"on_error": "drop", **options})


def sampled(rewards: RewardEnsemble, prompts: Sequence[str] = MIXED, **more: Any) -> Any:
    return gathered(
        ToyPolicy(dtype=torch.float64), more.pop("batch", None) or batch_of(prompts, step=5), rewards=rewards, **more
    )


@pytest.mark.parametrize("normalise", ["none", "group", "batch"])
@pytest.mark.parametrize("algorithm", ["grpo", "reinforce_pp_baseline"])
def test_groups_without_a_reward_count_nowhere(algorithm: str, normalise: str) -> None:
    """Loss, gradient and normaliser are those of the other groups alone, KL included."""
    policy = ToyPolicy(dtype=torch.float64)
    result = sampled(ensemble(normalise=normalise), algorithm=algorithm)
    assert result.figures == {"rewards/failed_groups": 2, "rewards/dropped_groups": 2}
    assert torch.equal(result.experience.report.judged, ~BROKEN)
    for level in result.experience.levels.values():
        assert not level.mask[BROKEN].any()
    for advantages in result.experience.advantages.values():
        assert not advantages[BROKEN].any()
        assert advantages[~BROKEN].any()
    loss, ours, metrics, _ = stepped(policy, result.experience, update_settings(), algorithm=algorithm)
    kept = batch_of([MIXED[0], MIXED[2]], step=5, positions=[0, 2])
    alone = sampled(ensemble(normalise=normalise), batch=kept, algorithm=algorithm).experience
    want, theirs, want_metrics, _ = stepped(policy, alone, update_settings(), algorithm=algorithm)
    assert loss == pytest.approx(want, rel=ADVANTAGES)
    assert_same_gradients(ours, theirs, ADVANTAGES)
    assert shown(metrics) == pytest.approx(shown(want_metrics), rel=ADVANTAGES, abs=ADVANTAGES)


def test_the_figures_are_of_what_was_judged() -> None:
    result = sampled(ensemble())
    figures = experience_metrics(result)
    kept = result.experience.report.raw[~BROKEN]
    assert figures["reward"] == pytest.approx(kept.mean().item())
    assert figures["rewards/failed_groups"] == figures["rewards/dropped_groups"] == 2
    assert figures["fails_for/failed"] == 0.5


def test_the_other_experts_of_a_group_go_on_without_it() -> None:
    result = sampled(ensemble(alone=False))
    assert result.figures == {"rewards/failed_groups": 2, "rewards/dropped_groups": 0}
    report = result.experience.report
    green = report.scores[:, 1]
    torch.testing.assert_close(report.total[BROKEN], green[BROKEN])
    torch.testing.assert_close(report.total[~BROKEN], (report.scores[:, 0] + green)[~BROKEN])
    assert all(level.mask.any(1).all() for level in result.experience.levels.values())


def test_a_batch_without_any_reward_moves_nothing() -> None:
    result = sampled(ensemble(), prompts=["broken circle", "broken square"])
    assert result.figures == {"rewards/failed_groups": 2, "rewards/dropped_groups": 2}
    loss, ours, _, _ = stepped(ToyPolicy(), result.experience, update_settings())
    assert loss == 0
    assert all(not gradient.any() for gradient in ours.values())
    figures = experience_metrics(result)
    assert "reward" not in figures
    assert figures["fails_for/failed"] == 1.0


def test_under_raise_the_first_failure_ends_the_step() -> None:
    with pytest.raises(RewardError, match=r"'fails_for': MemoryError: no room \(prompt: 'a red circle'\)"):
        sampled(ensemble(on_error="raise"))


def test_an_evaluation_leaves_out_what_lost_an_expert() -> None:
    """The means are over whole rewards; what the other experts say still counts."""
    policy, records = ToyPolicy(), [PromptRecord(prompt) for prompt in MIXED]
    settings = EvaluationSettings(RolloutSettings.of(ROLLOUT), seed=1234, samples_per_prompt=1, batch_size=3)

    def evaluated(rewards: RewardEnsemble, chosen: Sequence[PromptRecord]) -> Any:
        return evaluate(policy, policy.decoder(), rewards, chosen, settings, "test")

    result = evaluated(ensemble(alone=False), records)
    assert [sample.reward is None for sample in result.samples] == [False, True, False, True]
    whole = [sample.reward for sample in result.samples if sample.reward is not None]
    means = result.means()
    assert means["reward"] == pytest.approx(sum(whole) / 2)
    assert means["green"] == pytest.approx(sum(sample.scores["green"] for sample in result.samples) / 4)
    with pytest.raises(RewardError, match=r"'fails_for': not one of 1 images could be judged: .*no room"):
        evaluated(ensemble(), records[1:2])


def test_dynamic_sampling_replaces_what_has_no_reward() -> None:
    asked = []

    def source(step: int, attempt: int, positions: Sequence[int]) -> list[PromptRecord]:
        asked.append((attempt, list(positions)))
        return [PromptRecord("broken again" if attempt == 1 else "a green square") for _ in positions]

    result = sampled(ensemble(normalise="batch"), refills=source, dynamic_sampling=True, max_refills=2)
    assert asked == [(1, [1, 3]), (2, [1, 3])]
    assert [record.prompt for record in result.records] == [MIXED[0], "a green square", MIXED[2], "a green square"]
    assert result.figures["rewards/failed_groups"] == 4
    assert result.figures["rewards/dropped_groups"] == result.figures["refill/dropped"] == 0
    assert all(level.mask.any(1).all() for level in result.experience.levels.values())


def test_what_stays_without_reward_is_no_group_without_signal() -> None:
    result = sampled(ensemble(), refills=lambda *_: [], dynamic_sampling=True, max_refills=0)
    assert result.figures["rewards/dropped_groups"] == 2
    assert result.figures["refill/dropped"] == 0


@pytest.mark.parametrize("normalise", ["none", "batch", "running"])
def test_two_ranks_drop_and_normalise_as_one(normalise: str) -> None:
    """Each rank refills by itself, the scale is asked for once by all; figures add up."""
    prompts = ["a red circle", "broken square", "two blue circle", "one triangle", "broken triangle", "a green square"]

    def source(step: int, attempt: int, positions: Sequence[int]) -> list[PromptRecord]:
        return [PromptRecord("broken still" if position == 1 else "one red square") for position in positions]

    def run(batch: Any, ranks: Ranks) -> Any:
        rewards = ensemble(alone=False, weights={"green": 0}, normalise=normalise)
        return sampled(rewards, batch=batch, refills=source, dynamic_sampling=True, max_refills=1, ranks=ranks)

    whole, parts = as_two_ranks(prompts, run)
    for name in (PLAN, IMAGE):
        together = torch.cat([part.experience.advantages[name] for part in parts])
        torch.testing.assert_close(together, whole.experience.advantages[name])
        counted = [part.experience.levels[name].mask.any(1) for part in parts]
        assert torch.equal(torch.cat(counted), whole.experience.levels[name].mask.any(1))
    figures = experience_metrics(whole)
    assert (figures["rewards/failed_groups"], figures["rewards/dropped_groups"]) == (3, 1)
    both = Ranks(gather_named=lambda mine: [_measured(part) for part in parts])
    for part in parts:
        assert experience_metrics(part, both) == figures


def settings(**more: Any) -> dict[str, Any]:
    """A run whose trained expert fails for red circles, one of six prompts, and is watched by a monitor."""
    keys = {
        "+rewards.experts.red._target_": "tests.training.experts.FailsFor",
        "+rewards.experts.red.word": "red circle",
        "+rewards.experts.green._target_": "tests.training.experts.Green",
        "+rewards.weights.green": 0,
        "rewards.on_error": "drop",
        "rollout.prompts_per_step": 6,
        "trainer.max_steps": 3,
        **more,
    }
    return {key.replace(".", "__"): value for key, value in keys.items()}


def test_a_run_goes_on_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, run = write_world(tmp_path / "world"), tmp_path / "run"
    assert train(world, run, **settings()) == 0
    rows = [row for row in metrics_rows(run) if row["step"] != "0"]
    assert [row["rewards/failed_groups"] for row in rows] == ["1.0"] * 3, "of six prompts one fails"
    assert [row["rewards/dropped_groups"] for row in rows] == ["1.0"] * 3
    assert "seconds/reward/red" in rows[0]
    assert capsys.readouterr().out.count("expert 'red' left groups it failed on") == 1
    summary = json.loads((run / "summary.json").read_text())
    assert any("'red'" in warning for warning in summary["reward_warnings"])
    assert all(line["reward"] is None or 0 <= line["reward"] <= 1 for line in rollout_lines(run))


def test_an_evaluation_nobody_can_judge_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_world(tmp_path / "world")
    code = train(world, tmp_path / "run", **settings(**{"+rewards.experts.red.word": "triangle"}))
    assert code == 1
    assert "not one of 3 images could be judged" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_do_as_one(tmp_path: Path) -> None:
    """Real ranks (gloo): experts that fail on one of them, running statistics, dynamic sampling; nobody waits."""
    world = write_world(tmp_path / "world")
    rows = []
    for ranks in (1, 2):
        extra = {
            "rewards.normalise": "running",
            "trainer.devices": ranks,
            "trainer.strategy": "auto" if ranks == 1 else "ddp",
            "algorithm": "dapo",
            "algorithm.dynamic_sampling": "true",
        }
        line = overrides(world, tmp_path / f"run{ranks}", **settings(**extra))
        done = run_process([sys.executable, "-m", "src.train", *line], tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        rows.append(metrics_rows(tmp_path / f"run{ranks}")[1])
    alone, both = rows
    names = [n for n in alone if n.startswith("rewards/") or n in ("reward", "red/applicable", "green/mean")]
    assert len(names) == 5
    for name in names:
        # Two ranks decode their pictures in two batches, which some processors round differently (by 1e-6 of a mean).
        assert float(both[name]) == pytest.approx(float(alone[name]), abs=1e-5), name
