"""Sampling problems, and the distributions they are of, worked out in float64 numpy without sorting or thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.kernels.problems import draw

LAST_UNIFORM = 1.0 - 2.0**-53  # the largest float64 below 1

# 0, the smallest of the noise and of all numbers, both sides of the last share that is told apart, the largest.
EXTREME_UNIFORMS = (0.0, 2.0**-53, 5e-324, 1.0 - 2.0**-39, 1.0 - 2.0**-41, 1.0 - 2.0**-50, LAST_UNIFORM)

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7},
    {"guidance_scale": 5.0},
    {"guidance_scale": 0.3, "temperature": 1.7},
    {"guidance_scale": 0.0, "temperature": 0.9},
    {"top_k": 4},
    {"top_p": 0.6},
    {"guidance_scale": 1.5, "temperature": 0.9, "top_k": 6, "top_p": 0.8},
)


def name_of(setting: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in setting.items()) or "plain"


def inputs(
    rows: int, vocabulary: int, *, dtype: torch.dtype = torch.float32, spread: float = 2.0, seed: int = 0
) -> dict[str, Tensor]:
    """Logits, unconditional ones and uniforms of `rows` rows."""
    c, u = draw(2, rows, vocabulary, seed=seed, scale=spread, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": c,
        "unconditional": u,
        "uniform": torch.rand(rows, dtype=torch.float64, generator=generator),
    }


def evenly(n: int) -> Tensor:
    """A grid of n uniforms, each in the middle of its cell."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def probabilities(c: Tensor, u: Tensor, setting: dict[str, Any], *, truncated: bool = True) -> np.ndarray:
    """The exact distribution (V,) of one row, as the docstring of `sample_tokens` words it."""
    w, tau = setting.get("guidance_scale", 1.0), setting.get("temperature", 1.0)
    c64, u64 = c.double().numpy(), u.double().numpy()
    mixed = c64 if w == 1.0 else u64 + w * (c64 - u64)
    weights = np.exp((mixed - mixed.max()) / tau)
    if truncated:
        for key, share in (("top_k", False), ("top_p", True)):
            if setting.get(key) is not None:
                weights = _truncated(mixed, weights, setting[key], share)
    return weights / weights.sum()


def _truncated(mixed: np.ndarray, weights: np.ndarray, wanted: float, share: bool) -> np.ndarray:
    """Take levels of equal logits, from the most probable down, until there is enough."""
    enough = wanted * weights.sum() * (1 - 1e-12) if share else wanted
    kept, got = np.zeros_like(weights), 0.0
    for level in sorted(set(mixed[weights > 0].tolist()), reverse=True):
        members = mixed == level
        kept[members] = weights[members]
        got += weights[members].sum() if share else members.sum()
        if got >= enough:
            break
    return kept
