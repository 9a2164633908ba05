"""The small operations of one decode step of a Llama trunk, in plain torch: the oracle and what runs without a GPU.

One new token for each of N rows. What changes from step to step (the place in the cache, the filled length) is
read from tensors on the device, so that a step can be captured as a CUDA graph and replayed; no operation waits
for the device, and none has a gradient. Softmax, norm and rotation are computed in float32, or in float64 where
the input is float64; results have the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.decoding_checks import check_attention, check_gate_up, check_norm, check_rotation
from kernels.head import sum_dtype


@torch.no_grad()
def rotate_and_store(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor) -> Tensor:
    """Rotate the queries and keys of one token a row, and put keys and values into the cache at `place`.

    qkv (N, (Hq + 2*Hkv) * D): queries, keys, values, as one projection gives them. cos and sin (N, D): of each
    row's position, any floating dtype, in the convention of transformers' Llama (the first half of a head is
    rotated with the second). keys and values (N, Hkv, S, D), written in place; place: one int32 or int64 in [0, S),
    the same for all rows. Returns the rotated queries (N, Hq, D). Raises ValueError for shapes that do not fit.
    """
    query_heads = check_rotation(qkv, cos, sin, keys, values, place)
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    wide = heads[:, : query_heads + kv_heads].to(sum_dtype(qkv))
    low, high = wide.chunk(2, dim=-1)
    rotated = wide * cos[:, None].to(wide.dtype) + torch.cat((-high, low), dim=-1) * sin[:, None].to(wide.dtype)
    q, k = rotated.to(qkv.dtype).split((query_heads, kv_heads), dim=1)
    index = place.reshape(1).long()
    keys.index_copy_(2, index, k[:, :, None])
    values.index_copy_(2, index, heads[:, query_heads + kv_heads :, None])
    return q.contiguous()


@torch.no_grad()
def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, first: Tensor, length: Tensor, scale: float | None = None
) -> Tensor:
    """Attention of one query a row and head over the cache's places ``first[n] <= s < length``.

    q (N, Hq, D); keys and values (N, Hkv, S, D), where query head h reads head ``h // (Hq / Hkv)``; first (N,) and
    length (one element) int32 or int64. scale: of the scores, ``D ** -0.5`` if None. Returns (N, Hq, D), 0 for a
    row without a place. What the cache holds elsewhere, NaN too, has no effect. Raises ValueError for shapes that
    do not fit.
    """
    check_attention(q, keys, values, first, length)
    n, query_heads, head_dim = q.shape
    kv_heads, size = keys.shape[1:3]
    places = torch.arange(size, device=q.device)
    outside = ((places < first[:, None]) | (places >= length.reshape(1, 1)))[:, None, None]  # (N, 1, 1, S)
    wide = sum_dtype(q)
    grouped = q.view(n, kv_heads, query_heads // kv_heads, head_dim).to(wide)
    scores = grouped @ keys.to(wide).transpose(2, 3) * (head_dim**-0.5 if scale is None else scale)
    weights = scores.masked_fill(outside, -torch.inf).softmax(dim=-1).masked_fill(outside, 0.0)
    out = weights @ values.to(wide).masked_fill(outside.transpose(2, 3), 0.0)
    return out.flatten(1, 2).to(q.dtype)


@torch.no_grad()
def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(x + delta, its RMS norm times `weight`), rounded where transformers' residual stream and LlamaRMSNorm round.

    x and delta (N, H) of one dtype; without a delta the sum is x itself. weight (H,). The norm is rounded to x's
    dtype before it is multiplied by the weight. Raises ValueError for shapes that do not fit.
    """
    check_norm(x, delta, weight)
    total = x if delta is None else x + delta
    wide = total.to(sum_dtype(x))
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return total, weight * normed.to(x.dtype)


@torch.no_grad()
def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` (N, I) of gate_up (N, 2I) = gate | up; silu is rounded to the dtype first, as in LlamaMLP.

    Raises ValueError unless gate_up is floating (N, 2I).
    """
    check_gate_up(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
