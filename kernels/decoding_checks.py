"""What both implementations of the decode step's operations check first: shapes and dtypes, never values."""

from __future__ import annotations

import torch
from torch import Tensor


def check_rotation(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor) -> int:
    """The number of query heads, Hq; ValueError unless all shapes and dtypes fit together."""
    check_cache(keys, values)
    n, kv_heads, _, head_dim = keys.shape
    if qkv.dim() != 2 or qkv.shape[0] != n or qkv.shape[1] % head_dim or head_dim % 2:
        raise ValueError(
            f"qkv: shape {tuple(qkv.shape)}, expected (N, (Hq + 2*Hkv) * D) with an even D, as the cache's keys have "
            f"(N, Hkv, S, D) = {tuple(keys.shape)}"
        )
    query_heads = qkv.shape[1] // head_dim - 2 * kv_heads
    if query_heads < 1 or query_heads % kv_heads:
        raise ValueError(
            f"qkv: shape {tuple(qkv.shape)} holds {qkv.shape[1] // head_dim} heads of {head_dim}, expected Hq + 2*Hkv "
            f"with Hq a multiple of Hkv={kv_heads}, as keys of shape {tuple(keys.shape)} imply"
        )
    if qkv.dtype != keys.dtype:
        raise ValueError(f"qkv: dtype {qkv.dtype}, but the cache holds {keys.dtype}")
    for name, table in (("cos", cos), ("sin", sin)):
        if tuple(table.shape) != (n, head_dim) or not table.is_floating_point():
            raise ValueError(
                f"{name}: {table.dtype} of shape {tuple(table.shape)}, expected floating (N, D) = {(n, head_dim)}"
            )
    check_count("place", place)
    return query_heads


def check_attention(q: Tensor, keys: Tensor, values: Tensor, first: Tensor, length: Tensor) -> None:
    """ValueError unless q (N, Hq, D), keys and values (N, Hkv, S, D), first (N,) and a one-element length fit."""
    check_cache(keys, values)
    n, kv_heads, _, head_dim = keys.shape
    if q.dim() != 3 or q.shape[0] != n or q.shape[2] != head_dim or q.shape[1] % kv_heads:
        raise ValueError(
            f"q: shape {tuple(q.shape)}, expected (N, Hq, D) with Hq a multiple of Hkv, as keys have "
            f"(N, Hkv, S, D) = {tuple(keys.shape)}"
        )
    if q.dtype != keys.dtype:
        raise ValueError(f"q: dtype {q.dtype}, but the cache holds {keys.dtype}")
    if tuple(first.shape) != (n,) or not is_integer(first):
        raise ValueError(f"first: {first.dtype} of shape {tuple(first.shape)}, expected int32 or int64 (N,) = {(n,)}")
    check_count("length", length)


def check_norm(x: Tensor, delta: Tensor | None, weight: Tensor) -> None:
    """ValueError unless x is floating (N, H), delta like it or None, and weight floating (H,)."""
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x: {x.dtype} of shape {tuple(x.shape)}, expected floating (N, H)")
    if delta is not None and (delta.shape != x.shape or delta.dtype != x.dtype):
        raise ValueError(
            f"delta: {delta.dtype} of shape {tuple(delta.shape)}, but x is {x.dtype} of shape {tuple(x.shape)}"
        )
    if tuple(weight.shape) != (x.shape[1],) or not weight.is_floating_point():
        raise ValueError(
            f"weight: {weight.dtype} of shape {tuple(weight.shape)}, expected floating (H,) = {(x.shape[1],)}"
        )


def check_gate_up(gate_up: Tensor) -> None:
    """ValueError unless gate_up is floating (N, 2I)."""
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or not gate_up.is_floating_point():
        raise ValueError(f"gate_up: {gate_up.dtype} of shape {tuple(gate_up.shape)}, expected floating (N, 2*I)")


def check_cache(keys: Tensor, values: Tensor) -> None:
    """ValueError unless keys and values are floating (N, Hkv, S, D), alike, and not empty along Hkv and D."""
    if keys.dim() != 4 or not keys.is_floating_point() or keys.shape[1] < 1 or keys.shape[3] < 1:
        raise ValueError(f"keys: {keys.dtype} of shape {tuple(keys.shape)}, expected floating (N, Hkv, S, D)")
    if values.shape != keys.shape or values.dtype != keys.dtype:
        raise ValueError(
            f"values: {values.dtype} of shape {tuple(values.shape)}, but keys are {keys.dtype} of "
            f"shape {tuple(keys.shape)}"
        )


def check_count(name: str, count: Tensor) -> None:
    """ValueError unless `count` is an int32 or int64 tensor of one element."""
    if count.numel() != 1 or not is_integer(count):
        raise ValueError(f"{name}: {count.dtype} of shape {tuple(count.shape)}, expected int32 or int64, one element")


def is_integer(x: Tensor) -> bool:
    """Whether x is of a dtype that counts places."""
    return x.dtype in (torch.int32, torch.int64)
