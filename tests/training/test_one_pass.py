"""Training with the one-pass head is training: same loss, gradient and metrics for every variant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels import operations
from src import algorithms
from tests.policies.toy import ToyPolicy
from tests.training import pieces

CASES = [("torch", name) for name in algorithms.names()]


@pytest.mark.parametrize(("backend", "name"), [*CASES, pytest.param("triton", "grpo", marks=pytest.mark.slow)])
def test_one_pass_and_autograd_agree_on_both_updates(monkeypatch: pytest.MonkeyPatch, name: str, backend: str) -> None:
    used: list[str] = []
    ours = operations(backend, "cpu")  # triton: interpreted
    # Triton's operations take no float64. In float32 a sum of up to 24 products rounds by 24 times 6e-8 at most, and
    # a gradient has passed about ten such sums.
    exactness, dtype = (1e-10, torch.float64) if backend == "torch" else (240 * 2.0**-24, torch.float32)

    def counted(*arguments: Any, **options: Any) -> Any:
        used.append(name)
        return ours.one_pass_head(*arguments, **options)

    fused = replace(ours, name=backend, one_pass_head=counted, prefers_one_pass=True)
    policy = ToyPolicy(dtype=torch.float64)
    experience = pieces.collected(policy, algorithm=name).experience
    # For the second update: old log-probs from which the ratio has moved.
    generator = torch.Generator().manual_seed(3)
    levels = {
        key: replace(level, old_logp=level.rollout_logp + 0.3 * torch.randn(level.ids.shape, generator=generator))
        for key, level in experience.levels.items()
    }
    settings = pieces.update_settings()
    for case, cap in ((experience, None), (replace(experience, levels=levels), 2.0), (experience, 2.0)):
        found = []
        for chosen, trained in ((pieces.OPERATIONS, policy), (fused, ToyPolicy(dtype=dtype))):
            monkeypatch.setattr(pieces, "OPERATIONS", chosen)
            found.append(pieces.updated(trained, case, replace(settings, correction_cap=cap), 5, name))
            monkeypatch.undo()
        (want_loss, want, want_metrics, _), (loss, gradients, metrics, _) = found
        assert loss == pytest.approx(want_loss, rel=exactness)
        pieces.assert_same_gradients({name: value.double() for name, value in gradients.items()}, want, exactness)
        for level in want_metrics:
            assert metrics[level].keys() == want_metrics[level].keys()
            for metric, value in want_metrics[level].items():
                torch.testing.assert_close(
                    metrics[level][metric], value, rtol=exactness, atol=exactness, check_dtype=False
                )
    # A correction before the first update depends on this very pass: only the first two cases are closed forms.
    parts = -(-len(experience) // 5) * len(experience.levels)
    assert len(used) == (2 * parts if algorithms.load(name).closed_form else 0)
