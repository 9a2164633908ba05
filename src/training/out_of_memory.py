"""When a step does not fit: half the microbatch in a single process, else an error that names what to change."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


# What libraries say that have no class for it: torch on a CPU, C++, cuBLAS and cuDNN.
_NO_MEMORY = re.compile(
    r"can't allocate memory|DefaultCPUAllocator|not enough memory|out of memory|bad_alloc|ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
_WANTED = re.compile(r"tried to allocate (\d+) bytes")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of a GPU or of the machine, is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


@contextmanager
def memory_told(advice: str) -> Iterator[None]:
    """What runs out of memory in the ``with`` block raises DoesNotFit, with sizes and `advice`; all else passes."""
    try:
        yield
    except DoesNotFit:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(f"out of memory {advice} ({first_line(error)})") from error


def smaller_microbatch(size: int, rollouts: int, processes: int, error: BaseException) -> int:
    """The microbatch to try after `size` of `rollouts` ran out of memory: half of it. Says so, as a warning.

    Raises:
        DoesNotFit: where one rollout is too much already, and in several processes: the others are in the
            middle of the same step and would wait for ever.
    """
    size = min(size, rollouts)
    if processes > 1:
        raise DoesNotFit(
            f"out of memory in one of {processes} processes at optim.microbatch={size}: set it lower; {SMALLER_UPDATE}"
            f" ({first_line(error)})"
        )
    if size == 1:
        raise DoesNotFit(f"out of memory at optim.microbatch=1: {SMALLER_UPDATE} ({first_line(error)})")
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
        " (a lower rollout.max_rows keeps it)",
        RuntimeWarning,
        stacklevel=2,
    )
    return True


def release_memory() -> None:
    """Give back what is no longer referred to, so that large blocks can be had again."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """What an error says of the memory, in one line; of the machine's memory with the sizes in GiB."""
    text = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError) or "CUDA" in text or "CUBLAS" in text or "CUDNN" in text:
        return text
    wanted = _WANTED.search(text)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    asked = f"{int(wanted[1]) / 2**30:.2f} GiB wanted, " if wanted else ""
    return f"{asked}{free / 2**30:.2f} GiB of the machine's memory free: {text}"
