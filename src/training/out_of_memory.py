"""When a step does not fit: half the microbatch in a single process, else an error that names what to change."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from typing import Any

import torch

from src.policies.base import HasEngine

SMALLER_UPDATE = (
    "optim.activation_checkpointing=true and optim.split_levels=true keep less of a backward pass,"
    " a shorter rollout.max_plan_tokens needs less; docs/MEMORY.md has the sizes"
)
SMALLER_ROLLOUT = (
    "set rollout.max_rows, the rollouts decoded at once (null takes what fits when training starts), or"
    " lower rollout.prompts_per_step, rollout.group_size or rollout.max_plan_tokens (in evaluations"
    " evaluation.batch_size); docs/MEMORY.md has the sizes"
)


class DoesNotFit(RuntimeError):
    """The memory of the device is not enough for a step; the message names the keys to change."""


def smaller_microbatch(size: int, rollouts: int, processes: int, error: torch.OutOfMemoryError) -> int:
    """The microbatch to try after `size` of `rollouts` ran out of memory: half of it. Says so, as a warning.

    Raises:
        DoesNotFit: where one rollout is too much already, and in several processes: the others are in the
            middle of the same step and would wait for ever.
    """
    size = min(size, rollouts)
    if processes > 1:
        raise DoesNotFit(
            f"out of memory in one of {processes} processes at optim.microbatch={size}: set it lower; {SMALLER_UPDATE}"
            f" ({_first_line(error)})"
        )
    if size == 1:
        raise DoesNotFit(f"out of memory at optim.microbatch=1: {SMALLER_UPDATE} ({_first_line(error)})")
    half = (size + 1) // 2
    warnings.warn(
        f"out of memory at a microbatch of {size} rollouts: from here on {half}, with the same objective"
        f" (set optim.microbatch={half} to start with it)",
        RuntimeWarning,
        stacklevel=2,
    )
    return half


def give_up_cache(policy: Any, processes: int) -> bool:
    """Stop keeping the rollouts' cache between steps, where a policy does so; says so, as a warning.

    Returns whether that was news, so that the same can be tried again. Not in several processes: there nothing is.
    """
    if processes > 1 or not isinstance(policy, HasEngine) or not policy.engine.reuse_cache:
        return False
    policy.engine = replace(policy.engine, reuse_cache=False)
    policy.release_cache()
    warnings.warn(
        "out of memory in the update: from here on each rollout makes its cache anew and gives it back"
        " (set rollout.max_rows lower to keep it, or rollout.engine.reuse_cache=false to start with this)",
        RuntimeWarning,
        stacklevel=2,
    )
    return True


def release_memory() -> None:
    """Give back what is no longer referred to, so that large blocks can be had again."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
