"""Metrics join exactly, and the sampler's mismatch is measured as documented."""

from __future__ import annotations

import math

import pytest
import torch

from src.algorithms import MAXIMA, means, merge, sampler_mismatch


def test_sums_add_maxima_do_not_and_means_divide_by_tokens() -> None:
    parts = [
        {"tokens": torch.tensor(2.0), "kl": torch.tensor(1.0), "ratio_deviation_max": torch.tensor(0.3)},
        {"tokens": torch.tensor(6.0), "kl": torch.tensor(3.0), "ratio_deviation_max": torch.tensor(0.1)},
    ]
    assert "ratio_deviation_max" in MAXIMA
    assert means(merge(parts)) == pytest.approx({"tokens": 8.0, "kl": 0.5, "ratio_deviation_max": 0.3})


def test_no_tokens_have_no_mean() -> None:
    logged = means({"tokens": torch.tensor(0.0), "kl": torch.tensor(0.0), "mismatch_max": torch.tensor(0.0)})
    assert math.isnan(logged["kl"])
    assert logged["mismatch_max"] == 0


def test_sampler_mismatch_by_hand() -> None:
    """Differences 0.5 and -1 count, the third token does not."""
    got = means(
        sampler_mismatch(
            torch.tensor([[-1.0, -1.0, -9.0]]),
            torch.tensor([[-0.5, -2.0, float("nan")]], requires_grad=True),
            torch.tensor([[True, True, False]]),
        )
    )
    kl = (math.exp(0.5) - 1.5 + math.exp(-1)) / 2
    assert got == pytest.approx({"tokens": 2, "mismatch": 0.75, "mismatch_max": 1.0, "mismatch_kl": kl})


def test_equal_log_probs_have_no_mismatch() -> None:
    logp = torch.tensor([[-1.5, -0.25]])
    got = means(sampler_mismatch(logp, logp.clone(), torch.ones(1, 2, dtype=torch.bool)))
    assert (got["mismatch"], got["mismatch_max"], got["mismatch_kl"]) == (0, 0, 0)
