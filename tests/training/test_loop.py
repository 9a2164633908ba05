"""The grouped loop inside Lightning's Trainer, driving a policy that is no Janus."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from src.training.collect import NonFiniteError
from src.training.held_out import EvaluationSettings, evaluate
from src.training.update import shown
from src.values import IMAGE, PLAN, PromptBatch, PromptRecord
from tests.policies.toy import ToyDecoder, ToyPolicy
from tests.training.experts import NaNAfter
from tests.training.lightning_pieces import SAMPLING, fit, toy_module
from tests.training.pieces import updated

RECORDS = tuple(PromptRecord(f"triangle in {c}", "color", nouns=(c,)) for c in ("red", "green", "blue"))
EVALUATION = EvaluationSettings(SAMPLING, seed=1234, samples_per_prompt=64, batch_size=128)


def validation_reward(module: Any) -> float:
    return evaluate(module.policy, module.policy.decoder(), module.rewards, RECORDS, EVALUATION, "test").means()[
        "reward"
    ]


def test_a_policy_that_is_no_janus_learns(tmp_path: Path) -> None:
    """Sixty steps of the real loop: it paints the colour the prompt names, for prompts it was not trained on."""
    module = toy_module(lr=2e-2, max_steps=60, group_size=8, beta=0.005)
    before = validation_reward(module)
    trainer, loop = fit(module, tmp_path)
    after = validation_reward(module)
    assert trainer.global_step == 60
    assert loop.finished_batches == 60
    assert before < 0.6
    assert after > before + 0.2, (before, after)  # painting one colour for every prompt would stay at 0.5


@pytest.mark.parametrize("microbatch", [None, 5])
def test_one_step_of_the_loop_is_clipping_and_adamw(tmp_path: Path, microbatch: int | None) -> None:
    """The gradient comes from `collect` and the loss; what Lightning does with it is done by hand here."""
    module = toy_module(lr=0.05, max_steps=1, microbatch=microbatch, weight_decay=0.1, grad_clip=0.01)
    twin = copy.deepcopy(module)
    fit(module, tmp_path)
    stream_first = _first_batch(tmp_path)
    experience = twin.collect(stream_first).experience
    updated(twin.policy, experience, twin.variant)
    trained = [p for p in twin.policy.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in trained]).norm()  # type: ignore[union-attr]
    assert norm > 0.01, "clipping shall take part"
    for parameter in trained:
        parameter.grad *= 0.01 / norm  # type: ignore[operator]
    torch.optim.AdamW(trained, lr=0.05, betas=(0.9, 0.95), weight_decay=0.1).step()
    # AdamW's first step is lr * sign(gradient): where a gradient is about 0 its sign is rounding.
    for ours, theirs in zip(module.policy.parameters(), twin.policy.parameters(), strict=True):
        clear = theirs.grad is not None and theirs.grad.abs() > 1e-5  # type: ignore[union-attr]
        torch.testing.assert_close(ours[clear], theirs[clear], atol=1e-4, rtol=0)


def _first_batch(folder: Path) -> PromptBatch:
    from src.data.module import PromptDataModule

    return PromptDataModule(folder, 3).train_dataloader().batch(0)


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_steps_are_optimiser_steps(tmp_path: Path, updates: int) -> None:
    module = toy_module(max_steps=6, updates=updates)
    trainer, loop = fit(module, tmp_path)
    assert trainer.global_step == 6
    assert loop.finished_batches == 6 // updates


def test_further_updates_use_the_guidance_branch_of_the_weights_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates on one rollout: the second must not mix in the first's unconditional features."""
    module = toy_module(lr=5e-2, max_steps=2, updates=2)
    seen: list[tuple[Any, Any]] = []
    original = type(module).training_step

    def training_step(self: Any, batch: Any, batch_idx: int = 0) -> Any:
        level = batch.levels[IMAGE]
        fresh = ToyDecoder(self.policy.net).evaluate(IMAGE, level.unconditional, level.ids)
        seen.append((level, fresh))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(type(module), "training_step", training_step)
    fit(module, tmp_path)
    (first, fresh_first), (second, fresh_second) = seen
    torch.testing.assert_close(first.unconditional_features, fresh_first, atol=1e-5, rtol=0)
    torch.testing.assert_close(second.unconditional_features, fresh_second, atol=1e-5, rtol=0)
    assert (fresh_first - fresh_second).abs().max() > 1e-2, "the weights moved in between"
    assert first.old_logp is None
    torch.testing.assert_close(second.old_logp, first.rollout_logp, atol=1e-4, rtol=0)
    assert torch.equal(first.ids, second.ids)


def test_ratios_leave_one_after_the_first_update(tmp_path: Path) -> None:
    module = toy_module(lr=5e-2, max_steps=2, updates=2)
    fit(module, tmp_path)
    assert module.step_metrics["image/ratio_deviation_max"] > 1e-3
    once = toy_module(lr=5e-2, max_steps=1)
    fit(once, tmp_path / "once")
    assert once.step_metrics["image/ratio_deviation_max"] < 1e-6


def test_the_sampler_mismatch_is_logged_with_several_updates_too(tmp_path: Path) -> None:
    module = toy_module(max_steps=2, updates=2)
    fit(module, tmp_path)
    assert "image/mismatch" in module.step_metrics


def test_frozen_parameters_are_left_alone(tmp_path: Path) -> None:
    policy = ToyPolicy()
    policy.net.letters.requires_grad_(False)
    before = policy.net.letters.weight.clone()
    fit(toy_module(policy=policy, max_steps=2, weight_decay=0.5), tmp_path)
    assert torch.equal(policy.net.letters.weight, before)


def test_a_loss_that_is_not_finite_stops_and_names_level_and_step(tmp_path: Path) -> None:
    module = toy_module(max_steps=5, max_skipped_steps=0)

    class Poison(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: PromptBatch, batch_idx: int) -> None:
            if batch.step == 2:
                original = module.collect

                def collect(batch: PromptBatch) -> Any:
                    result = original(batch)
                    level = result.experience.levels[IMAGE]
                    bad = replace(level, ref_logp=torch.full_like(level.rollout_logp, float("nan")))
                    levels = {**result.experience.levels, IMAGE: bad}
                    return replace(result, experience=replace(result.experience, levels=levels))

                module.collect = collect  # type: ignore[method-assign]

    with pytest.raises(NonFiniteError, match=r"step 2: level 'image'"):
        fit(module, tmp_path, callbacks=(Poison(),))


def test_a_reward_that_is_not_finite_names_expert_and_step(tmp_path: Path) -> None:
    """Issue 3: NaN or infinite reward stops with a message naming the expert and the step."""
    with pytest.raises(Exception, match=r"(?s)(step 2.*nan_after|nan_after.*step 2)"):
        fit(toy_module(max_steps=5, expert=NaNAfter(calls=2)), tmp_path)


def test_the_normaliser_of_the_loop_is_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src import algorithms

    module = toy_module(max_steps=1)
    module.algorithm = algorithms.load("dr_grpo")
    seen: list[float] = []
    original = type(module).training_step
    monkeypatch.setattr(
        type(module),
        "training_step",
        lambda self, batch, i=0: seen.append(batch.normaliser) or original(self, batch, i),
    )
    fit(module, tmp_path)
    assert seen == [12 * SAMPLING.max_plan_tokens + 12 * 4]


def test_metrics_do_not_depend_on_microbatches(tmp_path: Path) -> None:
    whole, parts = toy_module(max_steps=1), toy_module(max_steps=1, microbatch=5)
    fit(whole, tmp_path)
    fit(parts, tmp_path)
    assert (whole.step_metrics.pop("microbatch"), parts.step_metrics.pop("microbatch")) == (12, 5)
    timeless = {n: v for n, v in whole.step_metrics.items() if not n.startswith("seconds")}
    assert {PLAN + "/kl", IMAGE + "/kl", "reward", "groups_without_signal"} <= set(timeless)
    for name, value in timeless.items():
        assert parts.step_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_shown_metrics_are_means_over_tokens() -> None:
    metrics = {PLAN: {"tokens": torch.tensor(4.0), "kl": torch.tensor(2.0), "mismatch_max": torch.tensor(0.5)}}
    assert shown(metrics) == {"plan/tokens": 4.0, "plan/kl": 0.5, "plan/mismatch_max": 0.5}
