"""The learning rate by hand, and what reaches the optimiser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tests.training.lightning_pieces import fit, toy_module


def factors(max_steps: int = 10, **optim: Any) -> list[float]:
    module = toy_module(max_steps=max_steps, **optim)
    return [module.lr_factor(step) for step in range(max_steps + 3)]


def test_constant() -> None:
    assert factors() == [1.0] * 13
    assert factors(warmup_steps=4)[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_decay_by_hand() -> None:
    """Two steps of warm-up, then from 1 down to 0.2 over eight, and there it stays."""
    expected = [0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2]
    assert factors(warmup_steps=2, schedule="linear", final_lr_fraction=0.2) == pytest.approx(expected)


def test_cosine_decay_by_hand() -> None:
    got = factors(max_steps=4, schedule="cosine", final_lr_fraction=0.1)
    half = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    low = 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2
    assert got == pytest.approx([1.0, half, 0.55, low, 0.1, 0.1, 0.1])


def test_warm_up_as_long_as_the_run() -> None:
    assert factors(max_steps=4, warmup_steps=4, schedule="linear")[:4] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("updates", [1, 2])
def test_each_optimiser_step_has_its_rate(tmp_path: Path, updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule counts optimiser steps, not rollouts."""
    import torch

    used: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **keywords: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    module = toy_module(lr=0.01, max_steps=6, updates=updates, warmup_steps=2, schedule="linear", final_lr_fraction=0.0)
    fit(module, tmp_path)
    assert used == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_only_what_trains_is_optimised() -> None:
    module = toy_module()
    module.policy.net.letters.requires_grad_(False)
    groups = module.configure_optimizers()["optimizer"].param_groups
    optimised = {id(p) for group in groups for p in group["params"]}
    assert optimised == {id(p) for p in module.parameters() if p.requires_grad}
    assert isinstance(module, L.LightningModule)
