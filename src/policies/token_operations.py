"""The small operations of a decode step between its matrix products: plain torch, or the kernels' fused ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from kernels import Operations
from src.policies.cache import DecodeState


class TokenOperations(Protocol):
    """One new token for each of N rows; what changes from step to step is read from tensors on the device.

    reads_whole_cache: attention touches places outside of the window, with a weight of 0.
    """

    reads_whole_cache: bool

    def window(self, state: DecodeState, filled: Tensor) -> Any:
        """What attention of this step may look at: places from `first` of each row up to `filled`."""
        ...

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor
    ) -> Tensor:
        """Rotated queries (N, Hq, D) of qkv (N, (Hq + 2*Hkv) * D); keys and values go to `place` of the cache."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, window: Any) -> Tensor:
        """(N, Hq, D) over the cache's (N, Hkv, S, D) inside the window."""
        ...

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """x + delta, and its RMS norm."""
        ...

    def gate(self, gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """``activation(gate) * up`` of gate_up (N, 2I)."""
        ...


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm, rounded where transformers' LlamaRMSNorm rounds: before the weight, if x is not float32."""
    if x.dtype == torch.float32:
        return rms_norm(x, weight.shape, weight, epsilon)
    return weight * rms_norm(x, weight.shape, None, epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (RoPE, arXiv 2104.09864) of x (..., D), its first half rotated with its second."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class TorchTokenOperations:
    """In plain torch: attention reads `reach` places of the cache through one mask for all layers."""

    reads_whole_cache = True

    def window(self, state: DecodeState, filled: Tensor) -> Tensor:
        places: Tensor = torch.arange(state.reach or state.keys.shape[3], device=filled.device)
        return ((places >= state.first[:, None]) & (places < filled))[:, None, None]

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor
    ) -> Tensor:
        kv_heads, head_dim = keys.shape[1], keys.shape[3]
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        queries = heads.shape[1] - 2 * kv_heads
        rotated = rotate(heads[:, : queries + kv_heads], cos[:, None], sin[:, None])
        keys.index_copy_(2, place, rotated[:, queries:, None])
        values.index_copy_(2, place, heads[:, queries + kv_heads :, None])
        return rotated[:, :queries]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, window: Tensor) -> Tensor:
        reach = window.shape[-1]
        mixed = scaled_dot_product_attention(
            queries[:, :, None],
            keys[:, :, :reach],
            values[:, :, :reach],
            attn_mask=window,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return mixed[:, :, 0]

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        total = x if delta is None else x + delta
        return total, norm(total, weight, epsilon)

    def gate(self, gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return activation(gate) * up
