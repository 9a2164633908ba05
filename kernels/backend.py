"""Which implementation of the operations runs: one choice, made once, logged by the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels import reference
from kernels.reference import TokenStatistics

BACKENDS: tuple[str, ...] = ("auto", "triton", "torch")


class BackendUnavailable(ValueError):
    """A backend was forced that cannot run here."""


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of one backend; `name` is what to log. Signatures: :mod:`kernels.reference`."""

    name: str
    token_statistics: Callable[..., TokenStatistics]
    head_statistics: Callable[..., TokenStatistics]


TORCH = Operations("torch", reference.token_statistics, reference.head_statistics)


def resolve(backend: str, device: torch.device | str) -> str:
    """The name, "triton" or "torch", of what runs on `device` for the choice `backend`.

    ``auto`` takes Triton where it can run. A forced backend that cannot run raises BackendUnavailable and
    never falls back; an unknown name raises ValueError.
    """
    if backend not in BACKENDS:
        raise ValueError(f"kernels={backend}: expected one of {', '.join(BACKENDS)}")
    if backend == "torch":
        return "torch"
    obstacle = _triton_obstacle(torch.device(device))
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise BackendUnavailable(f"kernels=triton: {obstacle}; choose kernels=auto or kernels=torch")
    return "torch"


def operations(backend: str, device: torch.device | str) -> Operations:
    """The operations for the choice `backend` on `device`; raises as :func:`resolve` does."""
    return {"torch": TORCH}[resolve(backend, device)]


def _triton_obstacle(device: torch.device) -> str | None:
    """Why Triton operations cannot run on `device`, or None where they can."""
    return f"this version has no Triton operations (device {device})"
