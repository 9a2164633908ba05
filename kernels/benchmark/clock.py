"""Time and memory of GPU work: CUDA events, contestants in turn, first-level figures of the card itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Work = Callable[[], object]


class Timing(NamedTuple):
    """Milliseconds: median, 10th and 90th percentile of all rounds; replayed: as a CUDA graph."""

    median: float
    p10: float
    p90: float
    replayed: bool


def measure(works: Mapping[str, Work], device: torch.device, rounds: int, cold: bool) -> dict[str, Timing]:
    """Time each of `works` `rounds` times, in turn, so that clocks and heat are the same for all.

    cold: the second-level cache is overwritten before each run; else the work itself ran just before. On a GPU
    work is replayed as a CUDA graph where it can be captured, so that the host's time does not count.
    """
    ready = {name: _prepared(work, device) for name, work in works.items()}
    flush = torch.empty(_flush_bytes(device) // 4, dtype=torch.float32, device=device) if cold else None
    samples: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(rounds):
        start = turn % len(names) if names else 0
        for name in names[start:] + names[:start]:
            work = ready[name][0]
            if flush is not None:
                flush.fill_(float(turn))
            else:
                work()
            samples[name].append(_once(work, device))
    return {name: Timing(*_quantiles(values), ready[name][1]) for name, values in samples.items()}


def extra_memory(work: Work, device: torch.device) -> int:
    """Bytes at the peak of `work` beyond what lived before and what it returns; 0 where nobody counts them."""
    if device.type != "cuda":
        return 0
    work()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    kept = work()
    torch.cuda.synchronize(device)
    extra = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    del kept
    return extra


def copy_bandwidth(device: torch.device, rounds: int, size: int) -> float:
    """Bytes a second that a copy of `size` bytes moves, read and write counted."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda: target.copy_(source)}, device, rounds, cold=True)["copy"]
    return 2 * size / (timing.median * 1e-3)


def matrix_rate(device: torch.device, rounds: int, size: int, dtype: torch.dtype) -> float:
    """FLOP a second of the vendor's matrix product of two random square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    timing = measure({"product": lambda: torch.mm(a, b, out=out)}, device, rounds, cold=False)["product"]
    return 2 * size**3 / (timing.median * 1e-3)


def _prepared(work: Work, device: torch.device) -> tuple[Work, bool]:
    """The work warmed up, and captured as a graph where that can be done."""
    for _ in range(3):
        work()
    if device.type != "cuda":
        return work, False
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError:  # reads back to the host, or allocates outside the graph: timed as it is
        torch.cuda.synchronize(device)
        return work, False
    return graph.replay, True


def _once(work: Work, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def _flush_bytes(device: torch.device) -> int:
    """Four times the second-level cache."""
    return 4 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 4096


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    """(median, p10, p90)."""
    points: Tensor = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    )
    median, p10, p90 = points.tolist()
    return median, p10, p90
