"""Combinations of settings that make no sense, said before the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.algorithms.algorithm import Algorithm
from src.algorithms.kl import ESTIMATORS, KL_NAMES

# The config's defaults of what only steers a bonus with a target: another value without one is a mistake.
STEERING_DEFAULTS = {"entropy_step": 0.005, "entropy_maximum": 0.1}


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
    if level_weights is not None:
        _check_level_weights(level_weights, beta, kl_in)
    if correction_cap is not None and not correction_cap > 1:
        raise ValueError(f"algorithm.correction_cap={correction_cap}: expected above 1, or null for no correction")


def _check_level_weights(weights: Mapping[str, float], beta: float, kl_in: str) -> None:
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        raise ValueError(f"algorithm.level_weights={dict(weights)}: expected none below 0 and one above")
    idle = [name for name, weight in weights.items() if weight == 0]
    if idle and kl_in == "reward" and beta > 0:
        raise ValueError(
            f"algorithm.level_weights.{idle[0]}={weights[idle[0]]} with algorithm.kl_in=reward and"
            f" algorithm.beta={beta}: a KL in the reward works through advantages, so this level would have none and"
            " drift from the reference; set algorithm.kl_in=loss (and a beta for it: a mean over tokens, no sum),"
            " a weight above 0, or algorithm.beta=0 algorithm.kl_in=loss for no KL at all"
        )


def _check_kl(beta: float, kl: str, kl_in: str) -> None:
    if beta < 0:
        raise ValueError(f"algorithm.beta={beta}: expected 0 or more; below 0 it would reward leaving the reference")
    if kl not in KL_NAMES:
        raise ValueError(f"algorithm.kl={kl}: expected one of {', '.join(KL_NAMES)}")
    if kl_in not in ("loss", "reward"):
        raise ValueError(f"algorithm.kl_in={kl_in}: expected loss or reward")
    if kl_in == "reward" and not beta:
        raise ValueError(
            f"algorithm.kl_in=reward with algorithm.beta={beta}: no KL is taken off any reward; set algorithm.beta"
            " above 0, or algorithm.kl_in=loss for a run without KL"
        )
    if beta and kl == "k1" and kl_in == "loss":
        others = ", ".join(name for name in (*ESTIMATORS, "exact") if name != "k1")
        raise ValueError(
            f"algorithm.kl=k1 with algorithm.kl_in=loss and algorithm.beta={beta}: as a loss, k1 has a gradient of "
            f"zero on average and only adds noise; choose algorithm.kl from {others}, or algorithm.kl_in=reward"
        )


def check_additions(algorithm: Algorithm, settings: Mapping[str, Any], max_plan_tokens: int) -> None:
    """Raise ValueError for additions to `algorithm` that contradict each other or would do nothing.

    settings: the keys under ``algorithm``. max_plan_tokens: the cap of a plan, its end token included.
    """
    _check_plan_length(settings, max_plan_tokens)
    _check_dynamic_sampling(algorithm, settings)
    _check_entropy(settings)
    shares = settings["level_shares"]
    if None in shares.values() and any(share is not None for share in shares.values()):
        given = " ".join(f"algorithm.level_shares.{name}={share}" for name, share in shares.items())
        raise ValueError(f"{given}: shares are of one whole; set both, or neither (null)")
    if settings["reference_refresh"] is not None and settings["beta"] == 0:
        raise ValueError(
            f"algorithm.reference_refresh={settings['reference_refresh']} with algorithm.beta=0: there is no KL, so"
            " no reference to refresh; set beta above 0 or reference_refresh=null"
        )


def _check_plan_length(settings: Mapping[str, Any], max_plan_tokens: int) -> None:
    unfinished, masked = settings["unfinished_plan_penalty"], settings["mask_unfinished"]
    if masked and unfinished:
        raise ValueError(
            f"algorithm.mask_unfinished=true with algorithm.unfinished_plan_penalty={unfinished}: plans that never end"
            " are either left out or made to cost; set one of the two to false / 0"
        )
    penalty, margin = settings["overlong_penalty"], settings["overlong_margin"]
    if bool(penalty) != (margin is not None):
        raise ValueError(
            f"algorithm.overlong_penalty={penalty} algorithm.overlong_margin={margin}: the penalty grows over the last"
            " `margin` tokens before the cap; set both, or neither (0 and null)"
        )
    if margin is not None and not 1 <= margin <= max_plan_tokens:
        raise ValueError(f"algorithm.overlong_margin={margin}: expected 1 to rollout.max_plan_tokens={max_plan_tokens}")
    if settings["penalties_on"] == "plan" and not (unfinished or penalty):
        raise ValueError(
            "algorithm.penalties_on=plan, but there is no penalty: set algorithm.unfinished_plan_penalty or"
            " algorithm.overlong_penalty, or penalties_on=both"
        )


def _check_dynamic_sampling(algorithm: Algorithm, settings: Mapping[str, Any]) -> None:
    if settings["dynamic_sampling"] and not algorithm.group_baseline:
        raise ValueError(
            f"algorithm.dynamic_sampling=true with algorithm.name={algorithm.name}: its baseline is that of the whole"
            " batch, to which a group of equal rewards says something, too; set dynamic_sampling=false or choose"
            f" another algorithm ({algorithm.name}_baseline compares within groups)"
        )
    if settings["signal_tolerance"] and not settings["dynamic_sampling"]:
        raise ValueError(
            f"algorithm.signal_tolerance={settings['signal_tolerance']} does nothing without dynamic sampling; set"
            " algorithm.dynamic_sampling=true or signal_tolerance=0"
        )


def _check_entropy(settings: Mapping[str, Any]) -> None:
    changed = [name for name, default in STEERING_DEFAULTS.items() if settings[name] != default]
    if changed and all(target is None for target in settings["entropy_target"].values()):
        given = " ".join(f"algorithm.{name}={settings[name]}" for name in changed)
        raise ValueError(
            f"{given}: does nothing without a target, the bonus is fixed; set algorithm.entropy_target.plan or .image,"
            " or leave " + " and ".join(f"algorithm.{name}={STEERING_DEFAULTS[name]}" for name in changed)
        )
    for level, target in settings["entropy_target"].items():
        bonus = settings["entropy_bonus"][level]
        if target is not None and bonus > settings["entropy_maximum"]:
            raise ValueError(
                f"algorithm.entropy_bonus.{level}={bonus}: above algorithm.entropy_maximum="
                f"{settings['entropy_maximum']}, the bound of a steered bonus; lower it, or set"
                f" algorithm.entropy_target.{level}=null for a fixed one"
            )
