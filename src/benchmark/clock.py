"""Times long pieces of work in turn, so that clocks and heat are the same for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from kernels.benchmark.clock import without_locals

Work = Callable[[], object]
WARM_UPS = 2


class Seconds(NamedTuple):
    """Median, smallest and largest of all rounds; peak_bytes: allocated at the peak of a round, 0 on a CPU."""

    median: float
    low: float
    high: float
    peak_bytes: int


class Timed(NamedTuple):
    """Seconds of those that ran, and what the others raised."""

    seconds: dict[str, Seconds]
    failed: dict[str, Exception]


def in_turn(works: Mapping[str, Work], rounds: int, device: torch.device) -> Timed:
    """Run every work twice to warm up, then `rounds` times in turn.

    The first time kernels are compiled and graphs captured; a cache that grows then drops captures, and the second
    makes them anew.

    A work that raises is dropped; the others continue.
    """
    failed: dict[str, Exception] = {}
    taken: dict[str, list[float]] = {name: [] for name in works}
    peaks: dict[str, int] = dict.fromkeys(works, 0)
    for turn in range(-WARM_UPS, rounds):
        for name, work in works.items():
            if name in failed:
                continue
            try:
                seconds, peak = once(work, device)
            except Exception as error:
                failed[name] = without_locals(error)
                continue
            if turn >= 0:
                taken[name].append(seconds)
                peaks[name] = max(peaks[name], peak)
    return Timed(
        {
            name: Seconds(float(torch.tensor(x, dtype=torch.float64).median()), min(x), max(x), peaks[name])
            for name, x in taken.items()
            if name not in failed
        },
        failed,
    )


def once(work: Work, device: torch.device) -> tuple[float, int]:
    """Seconds of one run and the bytes allocated at its peak (0 on a CPU)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) if on_gpu else 0
