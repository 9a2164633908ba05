"""Combinations of settings that make no sense, said before the run."""

from __future__ import annotations

from collections.abc import Mapping

from src.algorithms.algorithm import Algorithm
from src.algorithms.kl import ESTIMATORS, KL_NAMES


def check_settings(
    algorithm: Algorithm,
    *,
    clip_low: float,
    clip_high: float,
    beta: float,
    kl: str,
    kl_in: str = "loss",
    updates_per_rollout: int = 1,
    level_weights: Mapping[str, float] | None = None,
    correction_cap: float | None = None,
) -> None:
    """Raise ValueError, naming keys, values and the fix, for settings under which `algorithm` cannot work."""
    name = f"algorithm.name={algorithm.name}"
    if updates_per_rollout < 1:
        raise ValueError(f"algorithm.updates_per_rollout={updates_per_rollout}: expected at least 1")
    if updates_per_rollout > 1 and not algorithm.several_updates:
        raise ValueError(
            f"{name} has no importance ratio, so algorithm.updates_per_rollout={updates_per_rollout} would train on "
            "stale rollouts as if they were fresh; set it to 1 or choose another algorithm"
        )
    if algorithm.clips and not (0 <= clip_low <= 1 and clip_high >= 0 and clip_low + clip_high > 0):
        raise ValueError(
            f"algorithm.clip_low={clip_low} algorithm.clip_high={clip_high}: {name} clips the ratio to "
            "[1 - clip_low, 1 + clip_high]; expected clip_low in [0, 1], clip_high at least 0, one above 0"
        )
    _check_kl(beta, kl, kl_in)
    if level_weights is not None and (min(level_weights.values()) < 0 or max(level_weights.values()) == 0):
        raise ValueError(f"algorithm.level_weights={dict(level_weights)}: expected none below 0 and one above")
    if correction_cap is not None and not correction_cap > 1:
        raise ValueError(f"algorithm.correction_cap={correction_cap}: expected above 1, or null for no correction")


def _check_kl(beta: float, kl: str, kl_in: str) -> None:
    if beta < 0:
        raise ValueError(f"algorithm.beta={beta}: expected 0 or more; below 0 it would reward leaving the reference")
    if kl not in KL_NAMES:
        raise ValueError(f"algorithm.kl={kl}: expected one of {', '.join(KL_NAMES)}")
    if kl_in not in ("loss", "reward"):
        raise ValueError(f"algorithm.kl_in={kl_in}: expected loss or reward")
    if beta and kl == "k1" and kl_in == "loss":
        others = ", ".join(name for name in (*ESTIMATORS, "exact") if name != "k1")
        raise ValueError(
            f"algorithm.kl=k1 with algorithm.kl_in=loss and algorithm.beta={beta}: as a loss, k1 has a gradient of "
            f"zero on average and only adds noise; choose algorithm.kl from {others}, or algorithm.kl_in=reward"
        )
