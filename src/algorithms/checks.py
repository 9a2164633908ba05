"""Settings that an algorithm variant cannot work with; what contradicts itself under any is the schema's to say."""

from __future__ import annotations

from src.algorithms.algorithm import Algorithm
from src.config.schema import AlgorithmConfig


def check_settings(algorithm: Algorithm, settings: AlgorithmConfig, max_plan_tokens: int) -> None:
    """Raise ValueError, naming keys, values and the fix, for settings under which `algorithm` cannot work.

    max_plan_tokens: the cap of a plan, its end token included.
    """
    name = f"algorithm.name={algorithm.name}"
    if settings.updates_per_rollout > 1 and not algorithm.several_updates:
        raise ValueError(
            f"{name} has no importance ratio, so algorithm.updates_per_rollout={settings.updates_per_rollout} would"
            " train on stale rollouts as if they were fresh; set it to 1 or choose another algorithm"
        )
    if algorithm.clips and settings.clip_low + settings.clip_high == 0:
        raise ValueError(
            f"algorithm.clip_low={settings.clip_low} algorithm.clip_high={settings.clip_high}: {name} clips the ratio"
            " to [1 - clip_low, 1 + clip_high]; expected one above 0"
        )
    if settings.dynamic_sampling and not algorithm.group_baseline:
        raise ValueError(
            f"algorithm.dynamic_sampling=true with {name}: its baseline is that of the whole batch, to which a group of"
            " equal rewards says something, too; set dynamic_sampling=false or choose another algorithm"
            f" ({algorithm.name}_baseline compares within groups)"
        )
    margin = settings.overlong_margin
    if margin is not None and margin > max_plan_tokens:
        raise ValueError(f"algorithm.overlong_margin={margin}: expected 1 to rollout.max_plan_tokens={max_plan_tokens}")
