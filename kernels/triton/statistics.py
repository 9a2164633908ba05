"""Token statistics from logits by the kernels: one read of every logit forward, one read and one write back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_logits, check_options
from kernels.reference import TokenStatistics
from kernels.triton.rows import RowInputs, RowOutputs, Upstream, backward_rows, forward_rows

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def token_statistics(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    unconditional: Tensor | None = None,
    guidance_scale: float = 1.0,
    unconditional_grad: bool = False,
    ref_logits: Tensor | None = None,
    ref_unconditional: Tensor | None = None,
    ref_logp: Tensor | None = None,
    kl: str | None = "k3",
    entropy: bool = True,
    entropy_grad: bool = True,
    validate: bool = True,
    overwrite: bool = False,
) -> TokenStatistics:
    """As :func:`kernels.reference.token_statistics`, float32 throughout; logits bf16, fp16 or fp32.

    Rows may lie anywhere, but along V logits are contiguous, or else copied. The backward pass with
    ``kl="exact"`` reads the reference once more. overwrite: the gradient takes the place of `logits` (and, with
    `unconditional_grad`, of `unconditional`) in memory: nothing may read them afterwards, and a second backward
    pass raises RuntimeError; ValueError where several places of such a tensor are one in memory. With `validate`
    off, an id out of range gives logp NaN.
    """
    check_logits(logits, ids, unconditional=unconditional, ref_logits=ref_logits, ref_unconditional=ref_unconditional)
    check_options(
        ids,
        vocabulary=logits.shape[-1],
        temperature=temperature,
        guided=guidance_scale != 1.0,
        unconditional=unconditional,
        reference=ref_logits,
        ref_unconditional=ref_unconditional,
        ref_logp=ref_logp,
        kl=kl,
        validate=validate,
    )
    check_dtypes(logits=logits, unconditional=unconditional, ref_logits=ref_logits, ref_unconditional=ref_unconditional)
    if guidance_scale == 1.0:
        unconditional = ref_unconditional = None
    elif unconditional is not None and not unconditional_grad:
        unconditional = unconditional.detach()
    if ref_logits is None and ref_logp is None:
        kl = None
    inputs = RowInputs(
        contiguous_rows(logits),
        ids.contiguous(),
        None if unconditional is None else contiguous_rows(unconditional),
        None if ref_logits is None else contiguous_rows(ref_logits),
        None if ref_unconditional is None else contiguous_rows(ref_unconditional),
        None if ref_logp is None else ref_logp.detach().float().contiguous(),
        guidance_scale,
        temperature,
        kl,
    )
    if overwrite:
        check_no_overlap("logits", inputs.logits)
        if inputs.unconditional is not None and inputs.unconditional.requires_grad:
            check_no_overlap("unconditional", inputs.unconditional)
    results = _Statistics.apply(inputs.logits, inputs.unconditional, inputs, entropy, entropy_grad, overwrite)
    return TokenStatistics(*(None if x is None else x.view(ids.shape) for x in results))  # type: ignore[arg-type]


class _Statistics(torch.autograd.Function):
    """(logits, unconditional, the rest) -> logp, log_ratio, kl, entropy, each (N * T,) or None."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        unconditional: Tensor | None,
        inputs: RowInputs,
        entropy: bool,
        entropy_grad: bool,
        overwrite: bool,
    ) -> tuple[Tensor | None, ...]:
        out = RowOutputs.empty(
            inputs.ids.numel(),
            logits,
            ratio=inputs.ref_logits is not None or inputs.ref_logp is not None,
            kl=inputs.kl,
            entropy=entropy,
            gradient=any(ctx.needs_input_grad),
        )
        forward_rows(inputs, out)
        ctx.set_materialize_grads(False)
        if out.entropy is not None and not entropy_grad:
            ctx.mark_non_differentiable(out.entropy)
        ctx.options = (inputs.guidance_scale, inputs.temperature, inputs.kl, overwrite)
        ctx.count = len(out)
        exact = inputs.kl == "exact"
        ctx.save_for_backward(
            logits,
            inputs.ids,
            unconditional,
            inputs.ref_logits if exact else None,
            inputs.ref_unconditional if exact else None,
            *out,
        )
        return out[:4]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        guidance_scale, temperature, kl, overwrite = ctx.options
        if overwrite is None:
            raise RuntimeError(
                "overwrite=True: the first backward pass overwrote the logits; a second one is not possible"
            )
        logits, ids, unconditional, ref_logits, ref_unconditional, *kept = ctx.saved_tensors
        inputs = RowInputs(
            logits, ids, unconditional, ref_logits, ref_unconditional, None, guidance_scale, temperature, kl
        )
        wants_unconditional = unconditional is not None and ctx.needs_input_grad[1]
        if overwrite:
            ctx.options = (guidance_scale, temperature, kl, None)
            grad, grad_unconditional = logits, unconditional if wants_unconditional else None
        else:
            grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
            grad_unconditional = (
                torch.empty_like(unconditional, memory_format=torch.contiguous_format) if wants_unconditional else None
            )
        backward_rows(inputs, RowOutputs(*kept), upstream_of(upstream), grad, grad_unconditional)
        return grad, grad_unconditional, None, None, None, None


def upstream_of(gradients: tuple[Tensor | None, ...]) -> Upstream:
    """Autograd's gradients, which may be expanded scalars, as the kernels read them."""
    return Upstream(*(None if g is None else g.flatten().float().contiguous() for g in gradients))


def check_dtypes(**tensors: Tensor | None) -> None:
    """Raise ValueError for what the kernels do not compute in."""
    for name, x in tensors.items():
        if x is not None and x.dtype not in DTYPES:
            raise ValueError(
                f"{name}: dtype {x.dtype}, but the Triton operations take bfloat16, float16 and float32; "
                "use kernels=torch for others"
            )


def check_no_overlap(name: str, x: Tensor) -> None:
    """Raise ValueError where places of x share memory, as after `expand`: gradients written there would race."""
    reach = 0  # of the dimensions with smaller strides, in elements
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride <= reach:
            raise ValueError(
                f"overwrite=True: {name} of shape {tuple(x.shape)} and strides {x.stride()} has several places in "
                "the same memory, where their gradients would overwrite each other; give a contiguous() copy, or "
                "overwrite=False"
            )
        reach += stride * (size - 1)


def contiguous_rows(x: Tensor) -> Tensor:
    """x, or a copy of it where its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
