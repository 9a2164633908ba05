"""Attention of one query a row and head over a long cache: one read of keys and values, cut among programs.

A program takes a share of one row's filled places for all query heads of one key-value head. Every slot of a block
of places keeps a running maximum, sum and accumulator of its own, as the lanes of :mod:`kernels.triton.device` do:
a block costs no exchange between warps; slots are merged once, at the share's end, and shares by a second kernel.
"""

from __future__ import annotations

# ruff: noqa: N803 (compile-time constants are capitals, as in Triton's own code)
from functools import lru_cache
from math import e, log2
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import NOTHING
from kernels.triton.rows import COMPILE_OPTIONS, on_device_of

# Accumulators of a thread; with keys and values in flight it needs 64 registers, up to two query heads a program.
ELEMENTS = 16
# Warps that fill a multiprocessor at 64 registers a thread.
WARPS_A_MULTIPROCESSOR = 32
# Query heads a program takes, at 128 registers; more heads of the same keys are more programs.
MOST_HEADS = 4
# A share of fewer places than this is not worth a program.
LEAST_PLACES = 64
# The interpreter's card: an H100's or H200's.
MULTIPROCESSORS = 132
LOG2_E = log2(e)


class AttentionLaunch(NamedTuple):
    """How the work is cut: places a block, query heads a program, shares a row and head, warps a program."""

    block: int
    heads: int
    splits: int
    warps: int


def attention_launch(
    rows: int, kv_heads: int, group: int, places: int, head_dim: int, multiprocessors: int
) -> AttentionLaunch:
    """Warps and shares such that the card is full, of sizes alone: fixed once the step is captured.

    group: query heads of a key-value head. Eight warps a program where programs are few, shares only where that
    is still too little.
    """
    heads = min(MOST_HEADS, triton.next_power_of_2(group))
    programs = max(1, rows * kv_heads * triton.cdiv(group, heads))
    wanted = WARPS_A_MULTIPROCESSOR * multiprocessors / programs  # warps a program
    warps = 4 if wanted < 6 else 8
    splits = max(1, min(round(wanted / warps), triton.cdiv(places, LEAST_PLACES)))
    # At least 8 keys' features a thread (16 bytes of them), however many accumulators that makes for all heads.
    block = max(1, 32 * warps * max(8, ELEMENTS // heads) // triton.next_power_of_2(head_dim))
    return AttentionLaunch(block, heads, splits, warps)


@triton.jit
def attention_kernel(
    q,
    keys,
    values,
    first,
    length,
    out,
    partial,
    tops,
    totals,
    KV_HEADS,
    GROUP,
    S,
    D,
    q_n,
    q_h,
    k_n,
    k_h,
    k_s,
    v_n,
    v_h,
    v_s,
    scale,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (row and key-value head, chunk of its query heads, share). scale: of scores in powers of two.

    With one share the result goes to `out`; else unnormalised into partial (N * Hq, SPLITS, D), with the maximum
    and sum of its scores. An empty share reads no key, and writes its sum, 0, only.
    """
    n, kv = tl.program_id(0).to(tl.int64) // KV_HEADS, tl.program_id(0) % KV_HEADS
    split = tl.program_id(2)
    start = tl.maximum(tl.load(first + n), 0).to(tl.int32)
    stop = tl.minimum(tl.load(length), S).to(tl.int32)
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(tl.maximum(stop - start, 0), SPLITS), BLOCK) * BLOCK
        start += split * share
        stop = tl.minimum(stop, start + share)

    # (places, query heads, features): a block of keys is loaded once, and broadcast over the heads in registers.
    slots = tl.arange(0, BLOCK)[:, None, None]
    slots_2d = tl.arange(0, BLOCK)[:, None]
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :, None]
    columns = tl.arange(0, BLOCK_D)[None, None, :]
    head_mask = (heads < GROUP) & (columns < D)
    query = tl.load(q + n * q_n + (kv * GROUP + heads) * q_h + columns, mask=head_mask, other=0.0)
    query = query.to(tl.float32) * scale
    key_row = keys + n * k_n + kv * k_h + start.to(tl.int64) * k_s
    value_row = values + n * v_n + kv * v_h + start.to(tl.int64) * v_s
    top = tl.full([BLOCK, HEADS], NOTHING, tl.float32)
    total = tl.zeros([BLOCK, HEADS], tl.float32)
    mixed = tl.zeros([BLOCK, HEADS, BLOCK_D], tl.float32)
    for place in range(start, stop, BLOCK):
        mask = (place + slots < stop) & (columns < D)
        key = tl.load(key_row + slots * k_s + columns, mask=mask, other=0.0)
        value = tl.load(value_row + slots * v_s + columns, mask=mask, other=0.0)
        score = tl.where(place + slots_2d < stop, tl.sum(query * key.to(tl.float32), 2), NOTHING)
        # One exponential: the factor of whichever is smaller, the old sums or the new term.
        distance = score - top
        factor = tl.exp2(-tl.abs(distance))
        keep = tl.where(distance > 0, factor, 1.0)
        term = tl.where(distance > 0, 1.0, factor)
        total = keep * total + term
        mixed = keep[:, :, None] * mixed + term[:, :, None] * value.to(tl.float32)
        top = tl.maximum(top, score)
        key_row += BLOCK * k_s
        value_row += BLOCK * v_s

    row_top = tl.max(top, 0)
    weight = tl.exp2(top - row_top[None, :])
    row_total = tl.sum(weight * total, 0)
    row_mixed = tl.sum(weight[:, :, None] * mixed, 0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    features = tl.arange(0, BLOCK_D)[None, :]
    row = (n * KV_HEADS + kv) * GROUP + head
    mask = (head[:, None] < GROUP) & (features < D)
    if SPLITS == 1:
        result = row_mixed / tl.where(row_total > 0, row_total, 1.0)[:, None]
        tl.store(out + row[:, None] * D + features, result.to(out.dtype.element_ty), mask=mask)
    else:
        place = row * SPLITS + split
        tl.store(totals + place, row_total, mask=head < GROUP)
        if start < stop:
            tl.store(tops + place, row_top, mask=head < GROUP)
            tl.store(partial + place[:, None] * D + features, row_mixed, mask=mask)


@triton.jit
def combine_kernel(
    partial, tops, totals, out, D, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """One row and head: the shares that are not empty, weighed by their sums."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_SPLITS)
    columns = tl.arange(0, BLOCK_D)[None, :]
    total = tl.load(totals + row * SPLITS + splits, mask=splits < SPLITS, other=0.0)
    filled = total > 0
    top = tl.load(tops + row * SPLITS + splits, mask=filled, other=NOTHING)
    weight = tl.exp2(top - tl.max(top, 0))
    row_total = tl.sum(weight * total, 0)
    mask = filled[:, None] & (columns < D)
    mixed = tl.load(partial + (row * SPLITS + splits)[:, None] * D + columns, mask=mask, other=0.0)
    result = tl.sum(weight[:, None] * mixed, 0) / tl.where(row_total > 0, row_total, 1.0)
    features = tl.arange(0, BLOCK_D)
    tl.store(out + row * D + features, result.to(out.dtype.element_ty), mask=features < D)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    first: Tensor,
    length: Tensor,
    scale: float,
    launch: AttentionLaunch,
) -> Tensor:
    """Run the kernels on checked arguments, all contiguous along D; (N, Hq, D)."""
    n, query_heads, head_dim = q.shape
    kv_heads, places = keys.shape[1:3]
    group = query_heads // kv_heads
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    partial = tops = totals = None
    if launch.splits > 1:
        shares = (n * query_heads, launch.splits)
        partial = torch.empty((*shares, head_dim), dtype=torch.float32, device=q.device)
        tops, totals = (torch.empty(shares, dtype=torch.float32, device=q.device) for _ in range(2))
    block_d = triton.next_power_of_2(head_dim)
    with on_device_of(q):
        attention_kernel[(n * kv_heads, triton.cdiv(group, launch.heads), launch.splits)](
            q,
            keys,
            values,
            first,
            length,
            out if partial is None else None,
            partial,
            tops,
            totals,
            kv_heads,
            group,
            places,
            head_dim,
            *q.stride()[:2],
            *keys.stride()[:3],
            *values.stride()[:3],
            scale * LOG2_E,
            SPLITS=launch.splits,
            HEADS=launch.heads,
            BLOCK=launch.block,
            BLOCK_D=block_d,
            num_warps=launch.warps,
            **COMPILE_OPTIONS,
        )
        if partial is not None:
            combine_kernel[(n * query_heads,)](
                partial,
                tops,
                totals,
                out,
                head_dim,
                SPLITS=launch.splits,
                BLOCK_SPLITS=triton.next_power_of_2(launch.splits),
                BLOCK_D=block_d,
                num_warps=1,
                **COMPILE_OPTIONS,
            )
    return out


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of the card that `device` is; without one, the interpreter's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else MULTIPROCESSORS
