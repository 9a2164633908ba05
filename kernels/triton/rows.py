"""The kernels of token statistics, one program a row, and what launches them.

Launchers take checked arguments. Logits are (N, T, V) of any strides but 1 along V; per-token tensors are
contiguous (N * T,).
"""

from __future__ import annotations

# ruff: noqa: N803 (compile-time constants are capitals, as in Triton's own code)
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import estimate, estimate_slope, sweep, write_gradient

KL_CODES = {None: 0, "k1": 1, "k2": 2, "k3": 3, "exact": 4}
# Said explicitly, because its default differs between versions of Triton.
COMPILE_OPTIONS = {"enable_fp_fusion": True}
EXACT_KL = tl.constexpr(4)


class Launch(NamedTuple):
    """How a row is cut: logits a block, warps a program."""

    block: int
    warps: int


def launch_shape(vocabulary: int, itemsize: int, rows_read: int) -> Launch:
    """16 bytes a thread and row at 8 warps; half of it where many rows fill the registers; less for short rows."""
    block = 2048 if itemsize == 2 and rows_read < 4 else 1024
    block = min(block, max(16, triton.next_power_of_2(vocabulary)))
    per_warp = 256 if itemsize == 2 else 128
    return Launch(block, min(8, max(1, block // per_warp)))


@triton.jit
def forward_kernel(
    logits,
    unconditional,
    ref_logits,
    ref_unconditional,
    ref_logp,
    ids,
    logp_out,
    ratio_out,
    kl_out,
    entropy_out,
    picked_out,
    shift_out,
    T,
    V,
    c_n,
    c_t,
    u_n,
    u_t,
    rc_n,
    rc_t,
    ru_n,
    ru_t,
    w,
    inverse_temperature,
    KL: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n, t = row // T, row % T
    c = logits + n * c_n + t * c_t
    u = None
    ref_c = None
    ref_u = None
    if unconditional is not None:
        u = unconditional + n * u_n + t * u_t
    if ref_logits is not None:
        ref_c = ref_logits + n * rc_n + t * rc_t
        if ref_unconditional is not None:
            ref_u = ref_unconditional + n * ru_n + t * ru_t
    target = tl.load(ids + row)
    known = (target >= 0) & (target < V)
    logp, picked, shift, log_ratio, kl, entropy = sweep(
        c,
        u,
        ref_c,
        ref_u,
        tl.where(known, target, 0),
        V,
        w,
        inverse_temperature,
        EXACT=KL == EXACT_KL,
        ENTROPY=entropy_out is not None,
        BLOCK=BLOCK,
        EVEN=EVEN,
    )
    logp = tl.where(known, logp, float("nan"))
    tl.store(logp_out + row, logp)
    if picked_out is not None:
        tl.store(picked_out + row, picked)
    if entropy_out is not None:
        tl.store(entropy_out + row, entropy)
    if ref_logp is not None:
        log_ratio = tl.load(ref_logp + row) - logp
    if ratio_out is not None:
        tl.store(ratio_out + row, log_ratio)
    if KL == EXACT_KL:
        tl.store(kl_out + row, kl)
        if shift_out is not None:
            tl.store(shift_out + row, shift)
    elif kl_out is not None:
        tl.store(kl_out + row, estimate(log_ratio, KL))


@triton.jit
def backward_kernel(
    logits,
    unconditional,
    ref_logits,
    ref_unconditional,
    ids,
    logp_in,
    ratio_in,
    kl_in,
    entropy_in,
    picked_in,
    shift_in,
    to_logp_in,
    to_ratio_in,
    to_kl_in,
    to_entropy_in,
    grad,
    grad_unconditional,
    T,
    V,
    c_n,
    c_t,
    u_n,
    u_t,
    rc_n,
    rc_t,
    ru_n,
    ru_t,
    g_n,
    g_t,
    gu_n,
    gu_t,
    w,
    inverse_temperature,
    KL: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n, t = row // T, row % T
    c = logits + n * c_n + t * c_t
    grad_c = grad + n * g_n + t * g_t
    u = None
    ref_c = None
    ref_u = None
    grad_u = None
    if unconditional is not None:
        u = unconditional + n * u_n + t * u_t
    if grad_unconditional is not None:
        grad_u = grad_unconditional + n * gu_n + t * gu_t
    if ref_logits is not None:
        ref_c = ref_logits + n * rc_n + t * rc_t
        if ref_unconditional is not None:
            ref_u = ref_unconditional + n * ru_n + t * ru_t
    target = tl.load(ids + row)
    logp = tl.load(logp_in + row)
    picked = tl.load(picked_in + row)
    log_ratio = 0.0
    kl = 0.0
    entropy = 0.0
    shift = 0.0
    to_logp = 0.0
    to_kl = 0.0
    to_entropy = 0.0
    if to_logp_in is not None:
        to_logp = tl.load(to_logp_in + row)
    if to_ratio_in is not None:
        to_logp -= tl.load(to_ratio_in + row)
    if to_entropy_in is not None:
        to_entropy = tl.load(to_entropy_in + row)
        entropy = tl.where(to_entropy != 0.0, tl.load(entropy_in + row), 0.0)
    if to_kl_in is not None:
        to_kl = tl.load(to_kl_in + row)
        # What the KL of a masked token is multiplied by may be infinite: 0 * inf must not become NaN.
        log_ratio = tl.where(to_kl != 0.0, tl.load(ratio_in + row), 0.0)
        if KL == EXACT_KL:
            kl = tl.where(to_kl != 0.0, tl.load(kl_in + row), 0.0)
            shift = tl.load(shift_in + row)
        else:
            to_logp += to_kl * estimate_slope(log_ratio, KL)
    write_gradient(
        c,
        u,
        ref_c,
        ref_u,
        target,
        V,
        w,
        inverse_temperature,
        grad_c,
        grad_u,
        logp,
        picked,
        shift,
        log_ratio,
        kl,
        entropy,
        to_logp,
        to_kl,
        to_entropy,
        EXACT=(KL == EXACT_KL) and (to_kl_in is not None),
        ENTROPY=to_entropy_in is not None,
        BLOCK=BLOCK,
        EVEN=EVEN,
    )


class RowInputs(NamedTuple):
    """The logits of an operation and their tokens; those that are absent are None."""

    logits: Tensor
    ids: Tensor
    unconditional: Tensor | None = None
    ref_logits: Tensor | None = None
    ref_unconditional: Tensor | None = None
    ref_logp: Tensor | None = None
    guidance_scale: float = 1.0
    temperature: float = 1.0
    kl: str | None = None

    @property
    def launch(self) -> Launch:
        """The shape of a launch on these rows."""
        rows = sum(x is not None for x in self[:1] + self[2:5]) + (self.kl == "exact")
        return launch_shape(self.logits.shape[-1], self.logits.element_size(), rows)


class RowOutputs(NamedTuple):
    """What the forward kernel says of each row, (N * T,) float32; `picked` and `shift` serve the backward."""

    logp: Tensor
    log_ratio: Tensor | None
    kl: Tensor | None
    entropy: Tensor | None
    picked: Tensor | None
    shift: Tensor | None

    @classmethod
    def empty(
        cls, rows: int, like: Tensor, *, ratio: bool, kl: str | None, entropy: bool, gradient: bool
    ) -> RowOutputs:
        """Room for `rows` rows; gradient: also for what a backward pass needs."""

        def make(wanted: bool) -> Tensor | None:
            return torch.empty(rows, dtype=torch.float32, device=like.device) if wanted else None

        logp = make(True)
        assert logp is not None
        return cls(
            logp, make(ratio), make(kl is not None), make(entropy), make(gradient), make(gradient and kl == "exact")
        )

    def rows(self, index: slice) -> RowOutputs:
        """A view of some rows."""
        return RowOutputs(*(None if x is None else x[index] for x in self))  # type: ignore[arg-type]


class Upstream(NamedTuple):
    """Gradients of the loss with respect to the statistics, (N * T,) float32 contiguous, or None for none."""

    logp: Tensor | None
    log_ratio: Tensor | None
    kl: Tensor | None
    entropy: Tensor | None


def forward_rows(inputs: RowInputs, out: RowOutputs) -> None:
    """Fill `out`; nothing is launched where there is no row."""
    logits = inputs.logits
    n, t, v = logits.shape
    if n * t == 0:
        return
    shape = inputs.launch
    with on_device_of(logits):
        forward_kernel[(n * t,)](
            logits,
            inputs.unconditional,
            inputs.ref_logits,
            inputs.ref_unconditional,
            inputs.ref_logp,
            inputs.ids,
            out.logp,
            out.log_ratio,
            out.kl,
            out.entropy,
            out.picked,
            out.shift,
            t,
            v,
            *_strides(logits, inputs.unconditional, inputs.ref_logits, inputs.ref_unconditional),
            inputs.guidance_scale,
            1.0 / inputs.temperature,
            KL=KL_CODES[inputs.kl],
            BLOCK=shape.block,
            EVEN=v % shape.block == 0,
            num_warps=shape.warps,
            **COMPILE_OPTIONS,
        )


def backward_rows(
    inputs: RowInputs, out: RowOutputs, upstream: Upstream, grad: Tensor, grad_unconditional: Tensor | None = None
) -> None:
    """Write the gradient with respect to the logits into `grad`, which may be the logits themselves."""
    logits = inputs.logits
    n, t, v = logits.shape
    if n * t == 0:
        return
    exact = inputs.kl == "exact" and upstream.kl is not None
    ref, ref_unconditional = (inputs.ref_logits, inputs.ref_unconditional) if exact else (None, None)
    shape = inputs.launch
    with on_device_of(logits):
        backward_kernel[(n * t,)](
            logits,
            inputs.unconditional,
            ref,
            ref_unconditional,
            inputs.ids,
            out.logp,
            out.log_ratio,
            out.kl,
            out.entropy,
            out.picked,
            out.shift,
            *upstream,
            grad,
            grad_unconditional,
            t,
            v,
            *_strides(logits, inputs.unconditional, ref, ref_unconditional, grad, grad_unconditional),
            inputs.guidance_scale,
            1.0 / inputs.temperature,
            KL=KL_CODES[inputs.kl],
            BLOCK=shape.block,
            EVEN=v % shape.block == 0,
            num_warps=shape.warps,
            **COMPILE_OPTIONS,
        )


def _strides(*tensors: Tensor | None) -> list[int]:
    return [stride for x in tensors for stride in ((0, 0) if x is None else x.stride()[:2])]


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
