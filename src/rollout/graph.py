"""Capture a step once and replay it: on a GPU as a CUDA graph, which takes the host out of the token loop."""

from __future__ import annotations

from collections.abc import Callable

import torch

from src.policies.base import EngineSettings

Step = Callable[[], None]
# (step, reset): runs `step` as often as it needs, calls `reset` to put back what the step moved, returns the replay.
Capture = Callable[[Step, Step], Step]

WARM_UPS = 2


def cuda_graph(step: Step, reset: Step) -> Step:
    """Record `step` as a CUDA graph; the returned call replays it on the same tensors.

    The step has to read and write tensors that stay where they are, with shapes that never change, and must not ask
    the host for anything. Warm-up runs on a side stream let libraries set up their workspaces first.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            step()
            reset()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads (a data loader's) may use the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


# How a step is captured, by type of device.
CAPTURES: dict[str, Capture] = {"cuda": cuda_graph}


def capture_for(engine: EngineSettings, device: torch.device) -> Capture | None:
    """How to capture on `device` with these settings; None: run the step eagerly.

    Raises:
        ValueError: if a graph is asked for where there is none.
    """
    if not engine.captures(device):
        return None
    if device.type not in CAPTURES:
        raise ValueError(f"rollout.graph=true: CUDA graphs need a GPU, the device is {device}; set it to auto or false")
    return CAPTURES[device.type]
