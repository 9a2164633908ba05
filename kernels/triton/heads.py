"""The operations from hidden states: the vendor's matrix product and the row kernels, chunk by chunk.

A chunk is as many tokens as keep their logits in the second-level cache between the matrix product and the
kernel that reads them; they are written nowhere else.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.head import HeadGradient, HeadInputs, as_autocast, chunks, flat, prepare_head, product
from kernels.one_pass import OnePass, RowResults, Rows
from kernels.one_pass import one_pass_head as one_pass_over
from kernels.reference import TokenStatistics
from kernels.triton.one_pass import one_pass_rows
from kernels.triton.rows import RowInputs, RowOutputs, Upstream, backward_rows, forward_rows
from kernels.triton.statistics import check_dtypes, upstream_of

# Logits of one model a chunk may hold: policy's and reference's together stay well inside an H200's 50 MB of
# cache, and 256 rows of 16,384 fill its 132 multiprocessors with one wave of 128 x 256 tiles.
CHUNK_BYTES = 8 * 2**20
SMALLEST_CHUNK = 128


def chunk_tokens(vocabulary: int, itemsize: int) -> int:
    """Tokens a chunk: as many as CHUNK_BYTES hold, a multiple of 128, at least that."""
    return max(SMALLEST_CHUNK, CHUNK_BYTES // (vocabulary * itemsize) // SMALLEST_CHUNK * SMALLEST_CHUNK)


def head_statistics(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    unconditional_features: Tensor | None = None,
    guidance_scale: float = 1.0,
    unconditional_grad: bool = False,
    ref_features: Tensor | None = None,
    ref_weight: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ref_unconditional_features: Tensor | None = None,
    ref_logp: Tensor | None = None,
    kl: str | None = "k3",
    entropy: bool = True,
    entropy_grad: bool = True,
    chunk_size: int | None = None,
    validate: bool = True,
) -> TokenStatistics:
    """As :func:`kernels.reference.head_statistics`, float32 statistics; features bf16, fp16 or fp32.

    Logits are computed again for the gradient, and the reference's too under ``kl="exact"``. A head that
    requires no gradient costs none. chunk_size None: :func:`chunk_tokens`.
    """
    inputs = prepare_head(
        features,
        weight,
        bias,
        ids,
        temperature=temperature,
        unconditional_features=unconditional_features,
        guidance_scale=guidance_scale,
        unconditional_grad=unconditional_grad,
        ref_features=ref_features,
        ref_weight=ref_weight,
        ref_bias=ref_bias,
        ref_unconditional_features=ref_unconditional_features,
        ref_logp=ref_logp,
        kl=kl,
        chunk_size=chunk_size,
        validate=validate,
    )
    inputs = as_autocast(inputs)
    check_dtypes(features=inputs.features, ref_features=inputs.ref_features)
    size = chunk_size or chunk_tokens(weight.shape[0], inputs.features.element_size())
    if ref_features is None and ref_logp is None:
        kl = None
    given = None if ref_logp is None else flat(ref_logp.float())
    results = _Head.apply(
        inputs.features, inputs.weight, inputs.bias, inputs, given, temperature, kl, entropy, entropy_grad, size
    )
    return TokenStatistics(*(None if x is None else x.view(ids.shape) for x in results))  # type: ignore[arg-type]


class _Head(torch.autograd.Function):
    """(features, weight, bias, the rest) -> logp, log_ratio, kl, entropy, each (N * T,) or None."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        inputs: HeadInputs,
        ref_logp: Tensor | None,
        temperature: float,
        kl: str | None,
        entropy: bool,
        entropy_grad: bool,
        size: int,
    ) -> tuple[Tensor | None, ...]:
        referred = ref_logp is not None or inputs.ref_features is not None
        tokens = inputs.ids.numel()
        out = RowOutputs.empty(
            tokens, features, ratio=referred, kl=kl, entropy=entropy, gradient=any(ctx.needs_input_grad)
        )
        work = _Chunks(inputs, size, temperature, kl)
        for index in chunks(tokens, size):
            rows = work.rows(index)
            forward_rows(rows._replace(ref_logp=None if ref_logp is None else ref_logp[index]), out.rows(index))
        ctx.set_materialize_grads(False)
        if out.entropy is not None and not entropy_grad:
            ctx.mark_non_differentiable(out.entropy)
        ctx.options = (temperature, kl, size)
        if kl != "exact":
            inputs = inputs._replace(ref_features=None)
        ctx.save_for_backward(*inputs, *out)
        return out[:4]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        temperature, kl, size = ctx.options
        saved = ctx.saved_tensors
        inputs, out = HeadInputs(*saved[: len(HeadInputs._fields)]), RowOutputs(*saved[len(HeadInputs._fields) :])
        if gradients[2] is None:
            inputs = inputs._replace(ref_features=None)
        upstream = upstream_of(gradients)
        to_features = (
            torch.empty_like(inputs.features, memory_format=torch.contiguous_format)
            if ctx.needs_input_grad[0]
            else None
        )
        head = HeadGradient(inputs.weight, inputs.bias, ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        flat = None if to_features is None else to_features.view(-1, to_features.shape[-1])
        work = _Chunks(inputs, size, temperature, kl)
        for index in chunks(inputs.ids.numel(), size):
            rows = work.rows(index)
            part = Upstream(*(None if g is None else g[index] for g in upstream))
            backward_rows(rows, out.rows(index), part, grad=rows.logits)
            to_logits = rows.logits[0]
            if flat is not None:
                torch.mm(to_logits, inputs.weight, out=flat[index])
            head.add(to_logits, work.features[index])
        to_weight, to_bias = head.like(inputs.weight, inputs.bias)
        return to_features, to_weight, to_bias, None, None, None, None, None, None, None


class _Chunks:
    """Multiplies chunk after chunk into the same memory."""

    def __init__(self, inputs: HeadInputs, size: int, temperature: float, kl: str | None) -> None:
        self.inputs, self.temperature, self.kl = inputs, temperature, kl
        self.features = inputs.features.flatten(0, 1)
        self.ids = flat(inputs.ids)
        self.ref_features = None if inputs.ref_features is None else inputs.ref_features.flatten(0, 1)
        shape = (min(size, self.ids.numel()), inputs.weight.shape[0])
        self.buffer = self.features.new_empty(shape)
        self.ref_buffer = None if self.ref_features is None else self.ref_features.new_empty(shape)

    def rows(self, index: slice) -> RowInputs:
        """The logits of the tokens `index`, as one rollout; the next call overwrites them."""
        count = index.stop - index.start
        linear, ref_logits = self.inputs, None
        with torch.autocast(self.features.device.type, enabled=False):
            logits = product(self.features[index], linear.weight, linear.bias, self.buffer[:count])
            if self.ref_features is not None and self.ref_buffer is not None:
                out = self.ref_buffer[:count]
                ref_logits = product(self.ref_features[index], linear.ref_weight, linear.ref_bias, out)[None]
        return RowInputs(logits[None], self.ids[index], None, ref_logits, temperature=self.temperature, kl=self.kl)


def one_pass_chunk(rows: Rows, want_gradient: bool) -> RowResults:
    """One chunk of :func:`kernels.one_pass.one_pass_head`; the gradient takes the logits' place."""
    objective = rows.objective
    referred = rows.ref_logits is not None or rows.ref_logp is not None
    out = RowOutputs.empty(
        rows.ids.numel(),
        rows.logits,
        ratio=referred,
        kl=objective.kl if referred else None,
        entropy=objective.entropy,
        gradient=False,
    )
    losses = torch.empty_like(out.logp)
    one_pass_rows(rows, out, losses, want_gradient)
    return RowResults(losses, TokenStatistics(*out[:4]), rows.logits if want_gradient else None)


def one_pass_head(
    features: Tensor, weight: Tensor, *arguments: Any, chunk_size: int | None = None, **options: Any
) -> OnePass:
    """:func:`kernels.one_pass.one_pass_head` with the kernels; features bf16, fp16 or fp32."""
    check_dtypes(features=features)
    size = chunk_size or chunk_tokens(weight.shape[0], features.element_size())
    return _one_pass(features, weight, *arguments, chunk_size=size, **options)


_one_pass = partial(one_pass_over, rows=one_pass_chunk)
