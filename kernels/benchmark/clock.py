"""Time and memory of GPU work: CUDA events, contestants in turn, first-level figures of the card itself."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
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


class Measured(NamedTuple):
    """Timings of those that ran, and what the others raised."""

    timings: dict[str, Timing]
    failed: dict[str, Exception]


def measure(works: Mapping[str, Work], device: torch.device, rounds: int, cold: bool) -> Measured:
    """Time each of `works` `rounds` times, in turn, so that clocks and heat are the same for all.

    cold: the second-level cache is overwritten before each run; else the work itself ran just before. On a GPU
    all works are replayed as CUDA graphs, so that the host's time does not count, if every one can be captured;
    if one cannot, none is. A work that raises is out of the race, the others go on.
    """
    failed: dict[str, Exception] = {}

    def survives(name: str, action: Work) -> bool:
        try:
            action()
        except Exception as error:
            failed[name] = without_locals(error)
            return False
        return True

    running = {name: work for name, work in works.items() if survives(name, partial(_warm_up, work, device))}
    graphs = _captured(running, device)
    ready = running if graphs is None else graphs
    flush = torch.empty(_flush_bytes(device) // 4, dtype=torch.float32, device=device) if cold else None
    samples: dict[str, list[float]] = {name: [] for name in ready}
    names = list(ready)
    for turn in range(rounds):
        start = turn % len(names) if names else 0
        for name in names[start:] + names[:start]:
            if name in failed:
                continue
            if flush is not None:
                flush.fill_(float(turn))
            elif not survives(name, ready[name]):
                continue
            survives(name, lambda name=name: samples[name].append(_once(ready[name], device)))  # type: ignore[misc]
    kept = {name: Timing(*_quantiles(x), graphs is not None) for name, x in samples.items() if name not in failed}
    return Measured(kept, failed)


def without_locals(error: Exception) -> Exception:
    """The error with its frames' variables cleared, and those of what led to it: they would hold a peer's memory."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    return error


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
    timing = measure({"copy": lambda: target.copy_(source)}, device, rounds, cold=True).timings["copy"]
    return 2 * size / (timing.median * 1e-3)


def matrix_rate(device: torch.device, rounds: int, size: int, dtype: torch.dtype) -> float:
    """FLOP a second of the vendor's matrix product of two random square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    timing = measure({"product": lambda: torch.mm(a, b, out=out)}, device, rounds, cold=False).timings["product"]
    return 2 * size**3 / (timing.median * 1e-3)


def _warm_up(work: Work, device: torch.device) -> None:
    for _ in range(3):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _captured(works: Mapping[str, Work], device: torch.device) -> dict[str, Work] | None:
    """Every work as a CUDA graph; None where one of them cannot be: it reads back to the host, for instance."""
    if device.type != "cuda":
        return None
    made: dict[str, Work] = {}
    # One pool for all: nothing outlives a replay, and one each would not fit the card at the largest shape.
    pool = torch.cuda.graph_pool_handle()
    for name, work in works.items():
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture that breaks off leaves its own stream the current one.
            with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph, pool=pool):
                work()
        except Exception:  # of a peer: whatever it raises, it is timed as it is, and so are all the others
            torch.cuda.synchronize(device)
            return None
        made[name] = graph.replay
    return made


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
