"""The small operations of a decode step by kernels: one launch each, two where attention is cut into shares."""

from __future__ import annotations

# ruff: noqa: N803 (compile-time constants are capitals, as in Triton's own code)
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoding_checks import check_attention, check_gate_up, check_norm, check_rotation
from kernels.triton.attention import attend, attention_launch, multiprocessors
from kernels.triton.rows import COMPILE_OPTIONS, on_device_of
from kernels.triton.statistics import check_dtypes, contiguous_rows

# Heads of a row that a program of two warps rotates, and activations a program of four multiplies: 16 bytes a
# thread of each input in half precision at a head_dim of 128.
ROTATED_HEADS = 8
ACTIVATIONS = 1024


@triton.jit
def rotate_kernel(
    qkv,
    cos,
    sin,
    keys,
    values,
    place,
    out,
    QUERY_HEADS,
    KV_HEADS,
    S,
    HALF,
    qkv_n,
    cos_n,
    sin_n,
    k_n,
    k_h,
    k_s,
    v_n,
    v_h,
    v_s,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, group of its heads, whichever of queries, keys and values they are). HALF: of a head."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.load(place).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    within = column < HALF
    mask = within & (head < QUERY_HEADS + 2 * KV_HEADS)
    row = qkv + n * qkv_n + head * (2 * HALF) + column
    low = tl.load(row, mask=mask, other=0.0)
    high = tl.load(row + HALF, mask=mask, other=0.0)
    # Asked for once a head, though the same for all: so each thread has what its own features need.
    cos_row, sin_row = cos + n * cos_n + (0 * head + column), sin + n * sin_n + (0 * head + column)
    cos_low = tl.load(cos_row, mask=mask, other=0.0).to(tl.float32)
    sin_low = tl.load(sin_row, mask=mask, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_row + HALF, mask=mask, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_row + HALF, mask=mask, other=0.0).to(tl.float32)
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    turned_low = (wide_low * cos_low - wide_high * sin_low).to(low.dtype)
    turned_high = (wide_high * cos_high + wide_low * sin_high).to(low.dtype)

    is_query = within & (head < QUERY_HEADS)
    query_row = out + (n * QUERY_HEADS + head) * (2 * HALF) + column
    tl.store(query_row, turned_low, mask=is_query)
    tl.store(query_row + HALF, turned_high, mask=is_query)
    # With a place out of range no head is stored: memory beyond the cache is somebody else's.
    stored_heads = tl.where((at >= 0) & (at < S), KV_HEADS, 0)
    key_head = head - QUERY_HEADS
    is_key = within & (key_head >= 0) & (key_head < stored_heads)
    key_row = keys + n * k_n + key_head * k_h + at * k_s + column
    tl.store(key_row, turned_low, mask=is_key)
    tl.store(key_row + HALF, turned_high, mask=is_key)
    value_head = key_head - KV_HEADS
    is_value = within & (value_head >= 0) & (value_head < stored_heads)
    value_row = values + n * v_n + value_head * v_h + at * v_s + column
    tl.store(value_row, low, mask=is_value)
    tl.store(value_row + HALF, high, mask=is_value)


@triton.jit
def norm_kernel(x, delta, weight, total_out, normed_out, H, x_n, delta_n, epsilon, BLOCK: tl.constexpr):
    """One row, held in registers from the sum to the norm."""
    n = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < H
    total = tl.load(x + n * x_n + column, mask=mask, other=0.0)
    scale = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if delta is not None:
        change = tl.load(delta + n * delta_n + column, mask=mask, other=0.0)
        total = (total.to(tl.float32) + change.to(tl.float32)).to(total.dtype)
        tl.store(total_out + n * H + column, total, mask=mask)
    wide = total.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / H + epsilon)
    normed = normed.to(total.dtype).to(tl.float32) * scale
    tl.store(normed_out + n * H + column, normed.to(normed_out.dtype.element_ty), mask=mask)


@triton.jit
def silu_kernel(gate_up, out, WIDTH, gate_up_n, BLOCK: tl.constexpr):
    """Program (row, block of its activations)."""
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    gate = tl.load(gate_up + n * gate_up_n + column, mask=mask, other=0.0)
    up = tl.load(gate_up + n * gate_up_n + WIDTH + column, mask=mask, other=0.0)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = activated.to(tl.float32) * up.to(tl.float32)
    tl.store(out + n * WIDTH + column, product.to(gate.dtype), mask=mask)


def rotate_and_store(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor) -> Tensor:
    """As :func:`kernels.decoding.rotate_and_store`; bf16, fp16 or fp32, the cache contiguous along D.

    A place outside [0, S) is not written.
    """
    query_heads = check_rotation(qkv, cos, sin, keys, values, place)
    check_dtypes(qkv=qkv, cos=cos, sin=sin)
    _check_cache_rows(keys, values)
    n, kv_heads, places, head_dim = keys.shape
    qkv, cos, sin = contiguous_rows(qkv), contiguous_rows(cos), contiguous_rows(sin)
    out = torch.empty((n, query_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if not n:
        return out
    with on_device_of(qkv):
        rotate_kernel[(n, triton.cdiv(query_heads + 2 * kv_heads, ROTATED_HEADS))](
            qkv,
            cos,
            sin,
            keys,
            values,
            place,
            out,
            query_heads,
            kv_heads,
            places,
            head_dim // 2,
            qkv.stride(0),
            cos.stride(0),
            sin.stride(0),
            *keys.stride()[:3],
            *values.stride()[:3],
            HEADS=ROTATED_HEADS,
            BLOCK=triton.next_power_of_2(head_dim // 2),
            num_warps=2,
            **COMPILE_OPTIONS,
        )
    return out


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, first: Tensor, length: Tensor, scale: float | None = None
) -> Tensor:
    """As :func:`kernels.decoding.decode_attention`, reading the places asked for only; bf16, fp16 or fp32.

    The cache is contiguous along D. How the work is cut depends on sizes and the card alone, never on `first` or
    `length`: a captured step serves all lengths.
    """
    check_attention(q, keys, values, first, length)
    check_dtypes(q=q)
    _check_cache_rows(keys, values)
    n, query_heads, head_dim = q.shape
    kv_heads, places = keys.shape[1:3]
    launch = attention_launch(n, kv_heads, query_heads // kv_heads, places, head_dim, multiprocessors(q.device))
    scale = head_dim**-0.5 if scale is None else scale
    return attend(contiguous_rows(q), keys, values, first.contiguous(), length, scale, launch)


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As :func:`kernels.decoding.add_rms_norm`; bf16, fp16 or fp32."""
    check_norm(x, delta, weight)
    check_dtypes(x=x, weight=weight)
    n, width = x.shape
    rows = contiguous_rows(x)
    change = None if delta is None else contiguous_rows(delta)
    total = x if delta is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    if not x.numel():
        return total, normed
    block = triton.next_power_of_2(width)
    with on_device_of(x):
        norm_kernel[(n,)](
            rows,
            change,
            weight.contiguous(),
            None if change is None else total,
            normed,
            width,
            rows.stride(0),
            0 if change is None else change.stride(0),
            epsilon,
            BLOCK=block,
            num_warps=norm_warps(block),
            **COMPILE_OPTIONS,
        )
    return total, normed


def norm_warps(block: int) -> int:
    """Warps for a row of `block` elements, 8 a thread: few rows are on the card, so a row's time is what counts."""
    return min(32, max(1, block // 256))


def silu_mul(gate_up: Tensor) -> Tensor:
    """As :func:`kernels.decoding.silu_mul`; bf16, fp16 or fp32."""
    check_gate_up(gate_up)
    check_dtypes(gate_up=gate_up)
    n, width = gate_up.shape[0], gate_up.shape[1] // 2
    rows = contiguous_rows(gate_up)
    out = torch.empty((n, width), dtype=gate_up.dtype, device=gate_up.device)
    if not out.numel():
        return out
    with on_device_of(gate_up):
        silu_kernel[(n, triton.cdiv(width, ACTIVATIONS))](
            rows, out, width, rows.stride(0), BLOCK=ACTIVATIONS, num_warps=4, **COMPILE_OPTIONS
        )
    return out


def _check_cache_rows(keys: Tensor, values: Tensor) -> None:
    for name, x in (("keys", keys), ("values", values)):
        if x.stride(-1) != 1:
            raise ValueError(
                f"{name}: strides {x.stride()} of shape {tuple(x.shape)}, but the cache has to be contiguous along D"
            )
