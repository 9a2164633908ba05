"""Which implementation of the operations runs: one choice, made once, logged by the caller."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which

import torch
from torch import Tensor

from kernels import decoding, one_pass, reference, sampling
from kernels.one_pass import OnePass
from kernels.reference import TokenStatistics
from kernels.sampling import Draws

BACKENDS: tuple[str, ...] = ("auto", "triton", "torch")
# bf16 arithmetic begins here (A100); older cards run the plain-torch operations.
OLDEST_CAPABILITY = (8, 0)


class BackendUnavailable(ValueError):
    """A backend was forced that cannot run here."""


@dataclass(frozen=True, slots=True)
class DecodeOperations:
    """The small operations of a single-token decode step; signatures in :mod:`kernels.decoding`."""

    rotate_and_store: Callable[..., Tensor]
    decode_attention: Callable[..., Tensor]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    silu_mul: Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of one backend; `name` is what to log.

    Signatures: :mod:`kernels.reference`, :func:`kernels.one_pass.one_pass_head`,
    :func:`kernels.sampling.sample_tokens` and, of the decode step's, :mod:`kernels.decoding`. prefers_one_pass:
    whether the one-pass head is the faster way to a gradient, where the objective allows it (in plain torch it saves
    memory when given chunks, not time).
    """

    name: str
    token_statistics: Callable[..., TokenStatistics]
    head_statistics: Callable[..., TokenStatistics]
    one_pass_head: Callable[..., OnePass]
    sample_tokens: Callable[..., Draws]
    decoding: DecodeOperations
    prefers_one_pass: bool = False


TORCH = Operations(
    "torch",
    reference.token_statistics,
    reference.head_statistics,
    one_pass.one_pass_head,
    sampling.sample_tokens,
    DecodeOperations(decoding.rotate_and_store, decoding.decode_attention, decoding.add_rms_norm, decoding.silu_mul),
)


def resolve(backend: str, device: torch.device | str) -> str:
    """The name, "triton" or "torch", of what runs on `device` for the choice `backend`.

    ``auto`` takes Triton on a GPU where it can run. A forced backend that cannot run raises BackendUnavailable
    and never falls back; an unknown name raises ValueError.
    """
    if backend not in BACKENDS:
        raise ValueError(f"kernels={backend}: expected one of {', '.join(BACKENDS)}")
    device = torch.device(device)
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    obstacle = _triton_obstacle(device)
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise BackendUnavailable(f"kernels=triton: {obstacle}; choose kernels=auto or kernels=torch")
    return "torch"


def operations(backend: str, device: torch.device | str) -> Operations:
    """The operations for the choice `backend` on `device`; raises as :func:`resolve` does."""
    return TORCH if resolve(backend, device) == "torch" else _triton_operations()


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels on the CPU: slow, for tests only."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")


def _triton_operations() -> Operations:
    from kernels.triton import decoding, heads, statistics
    from kernels.triton.sampling import sample_tokens

    decode = DecodeOperations(
        decoding.rotate_and_store, decoding.decode_attention, decoding.add_rms_norm, decoding.silu_mul
    )
    return Operations(
        "triton",
        statistics.token_statistics,
        heads.head_statistics,
        heads.one_pass_head,
        sample_tokens,
        decode,
        prefers_one_pass=True,
    )


def _triton_obstacle(device: torch.device) -> str | None:
    """Why Triton operations cannot run on `device`, or None where they can."""
    if find_spec("triton") is None:
        return "the package triton is not installed (it exists for Linux: pip install triton)"
    if device.type == "cpu":
        return None if interpreted() else f"Triton kernels run on a GPU, the device is {device}"
    if device.type != "cuda":
        return f"Triton kernels run on NVIDIA GPUs, the device is {device}"
    if interpreted():
        return "TRITON_INTERPRET is set, under which kernels are interpreted on the CPU, for tests"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, "
            f"the kernels need {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
        )
    # Else the first launch fails, in the middle of a step.
    if not (os.environ.get("CC") or which("gcc") or which("clang")):
        return "Triton builds what launches a kernel with a C compiler: install gcc or clang, or set CC"
    return None
