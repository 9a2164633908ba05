"""A reference that moves along: what it is after a refresh, when it moves, and that a resumed run has the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.policies.base import RefreshableReference
from src.training.loop import GroupedRolloutLoop
from src.training.token_statistics import score_level
from tests.policies.tiny import tiny_policy
from tests.training.lightning_pieces import toy_module
from tests.training.pieces import OPERATIONS, update_settings
from tests.training.runs import checkpoint_weights, metrics_rows, train, without_times, write_world
from tests.training.variant_pieces import gathered, stepped

KINDS: dict[str, dict[str, Any]] = {"merged": {}, "unmerged": {"merge_rollout": False}, "full": {"lora": None}}


def scores(decoder: Any, levels: Any) -> dict[str, Tensor]:
    return {name: score_level(OPERATIONS, decoder, name, level, True).logp for name, level in levels.items()}


def of_reference(policy: Any, levels: Any) -> dict[str, Tensor]:
    with policy.reference() as decoder:
        return scores(decoder, levels)


def move(policy: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refreshed_reference_is_the_policy_of_that_moment(kind: str) -> None:
    policy = tiny_policy(**KINDS[kind])
    assert isinstance(policy, RefreshableReference)
    levels = gathered(policy, reference=False).experience.levels
    move(policy, 1)
    then, start = scores(policy.decoder(), levels), of_reference(policy, levels)
    assert max((then[name] - start[name]).abs().max() for name in levels) > 0.01
    policy.refresh_reference()
    assert_equal(of_reference(policy, levels), then)
    move(policy, 2)
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    assert_equal(of_reference(policy, levels), then)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, weights[name]), f"{name}: the policy itself must be what it was, to the bit"
    now = scores(policy.decoder(), levels)
    assert max((now[name] - then[name]).abs().max() for name in levels) > 0.01
    policy.refresh_reference()
    assert_equal(of_reference(policy, levels), now)


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_survives_in_another_policy(kind: str) -> None:
    policy, other = tiny_policy(**KINDS[kind]), tiny_policy(**KINDS[kind])
    levels = gathered(policy, reference=False).experience.levels
    assert policy.reference_state() == {}, "nothing to keep before the first refresh"
    move(policy, 1)
    policy.refresh_reference()
    state = {name: value.clone() for name, value in policy.reference_state().items()}
    move(policy, 2)
    other.load_reference_state(state)
    assert_equal(of_reference(other, levels), of_reference(policy, levels))
    with pytest.raises(ValueError, match="names do not fit"):
        other.load_reference_state(dict(list(state.items())[1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_kl_is_zero_right_after_a_refresh(kind: str) -> None:
    policy = tiny_policy(**KINDS[kind])
    move(policy, 1)
    for kl in ("k3", "exact"):
        before = stepped(policy, gathered(policy, kl=kl).experience, _settings(kl))[2]
        assert before["image"]["kl"] > 0.01
    policy.refresh_reference()
    for kl in ("k3", "exact"):
        after = stepped(policy, gathered(policy, kl=kl).experience, _settings(kl))[2]
        assert after["image"]["kl"] < 1e-4
        assert after["plan"]["kl"] < 1e-4


def _settings(kl: str) -> Any:
    return replace(update_settings(), kl=kl)


@pytest.mark.parametrize(("updates", "want"), [(1, [3, 6, 9]), (2, [4, 6, 10, 12]), (5, [5, 10, 15])])
def test_it_is_refreshed_every_so_many_optimiser_steps(updates: int, want: list[int]) -> None:
    """Every 3; with several updates a batch, at the end of the batch in which a multiple of 3 was passed."""
    module = toy_module(updates=updates)
    module.config = replace(module.config, algorithm=replace(module.variant, reference_refresh=3))
    seen: list[int] = []
    module.policy.refresh_reference = lambda: seen.append(step)  # type: ignore[assignment]
    for step in range(updates, want[-1] + 1, updates):
        assert module.refresh_reference(step) == (seen[-1:] == [step])
    assert seen == want


SETTINGS: dict[str, dict[str, Any]] = {
    "refreshed adapter": {"algorithm__reference_refresh": 3, "algorithm__beta": 0.1},
    "refreshed weights": {
        "algorithm__reference_refresh": 3,
        "algorithm__beta": 0.1,
        "model__lora": "null",
        "optim__lr": 1e-3,
    },
    "adaptive entropy": {
        "algorithm__entropy_target__plan": 5.0,
        "algorithm__entropy_target__image": 0.1,
        "algorithm__entropy_bonus__image": 0.02,
        "algorithm__entropy_step": 0.01,
    },
    "dynamic sampling": {
        "algorithm": "dapo",
        "algorithm__dynamic_sampling": "true",
        "algorithm__signal_tolerance": 0.002,
    },
}


class Killed(RuntimeError):
    """Stands for a process that dies without a word."""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_is_the_undisturbed_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the checkpoint of step 4, with the reference of step 3, bonuses moved, groups refilled."""
    world, settings = write_world(tmp_path), SETTINGS[name]
    assert train(world, tmp_path / "whole", **settings) == 0
    advance = GroupedRolloutLoop.advance

    def dies(self: GroupedRolloutLoop, kwargs: Any) -> None:
        if next(iter(kwargs.values())).step == 4:
            raise Killed
        advance(self, kwargs)

    monkeypatch.setattr(GroupedRolloutLoop, "advance", dies)
    with pytest.raises(Killed):
        train(world, tmp_path / "cut", **settings)
    monkeypatch.undo()
    assert train(world, tmp_path / "cut", resume="auto", **settings) == 0
    whole, cut = checkpoint_weights(tmp_path / "whole"), checkpoint_weights(tmp_path / "cut")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    rows = {int(row["step"]): without_times(row) for row in metrics_rows(tmp_path / "whole")}
    again = {int(row["step"]): without_times(row) for row in metrics_rows(tmp_path / "cut")}
    for step in (5, 6):
        assert {k: v for k, v in again[step].items() if not k.startswith("validation")} == {
            k: v for k, v in rows[step].items() if not k.startswith("validation")
        }
    if name.startswith("refreshed"):
        kl = [float(rows[step]["image/kl"]) for step in range(1, 7)]
        assert kl[3] < 1e-6 < kl[2], "right after the refresh of step 3 policy and reference are one"
    elif name == "adaptive entropy":
        assert [float(rows[step]["plan/entropy_bonus"]) for step in (1, 2, 3)] == pytest.approx([0, 0.01, 0.02])
        assert float(rows[2]["image/entropy_bonus"]) == 0.0
    else:
        assert sum(float(rows[step]["refill/groups"]) for step in range(1, 7)) > 0
