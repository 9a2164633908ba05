"""The small operations of a decode step between its matrix products: plain torch, or the kernels' fused ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from kernels import DecodeOperations
from src.policies.engine.cache import DecodeState


@dataclass(frozen=True, slots=True)
class Window:
    """Where a step writes and what its attention looks at: places [first, filled) of each row.

    first (N,), place (1,), filled (1,) int64, on the device. Where the host knows as much: reach, how many places
    are filled, and mask (N, 1, 1, reach or S) for all layers.
    """

    first: Tensor
    place: Tensor
    filled: Tensor
    reach: int | None
    mask: Tensor | None


class TokenOperations(Protocol):
    """One new token for each of N rows; what changes from step to step is read from tensors on the device.

    reads_whole_cache: attention touches places outside of the window, with a weight of 0.
    """

    reads_whole_cache: bool

    def window(self, state: DecodeState) -> Window:
        """The window of a step that appends to `state`."""
        ...

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, window: Window
    ) -> Tensor:
        """Rotated queries (N, Hq, D) of qkv (N, (Hq + 2*Hkv) * D); keys and values go to the window's place."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, window: Window) -> Tensor:
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
    """Rotary embedding (RoPE, arXiv 2104.09864) of x (..., D), its first half rotated with its second.

    Half precision rounds after each operation, as transformers does; float32 takes fewer of them.
    """
    low, high = x.chunk(2, dim=-1)
    if x.dtype != torch.float32:
        return x * cos + torch.cat((-high, low), dim=-1) * sin
    turned = x * cos
    half = low.shape[-1]
    turned[..., :half].addcmul_(high, sin[..., :half], value=-1)
    turned[..., half:].addcmul_(low, sin[..., half:])
    return turned


class TorchTokenOperations:
    """In plain torch: attention reads `reach` places of the cache through one mask for all layers."""

    reads_whole_cache = True

    def window(self, state: DecodeState) -> Window:
        filled = state.length + 1
        reach = None if state.reach is None else state.reach + 1
        places: Tensor = torch.arange(reach or state.keys.shape[3], device=filled.device)
        mask = ((places >= state.first[:, None]) & (places < filled))[:, None, None]
        return Window(state.first, state.length, filled, reach, mask)

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, window: Window
    ) -> Tensor:
        kv_heads, head_dim = keys.shape[1], keys.shape[3]
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        queries = heads.shape[1] - 2 * kv_heads
        rotated = rotate(heads[:, : queries + kv_heads], cos[:, None], sin[:, None])
        new_keys, new_values = rotated[:, queries:], heads[:, queries + kv_heads :]
        if window.reach is not None:
            # A place that the host knows is written to four times as fast on a CPU.
            keys[:, :, window.reach - 1] = new_keys
            values[:, :, window.reach - 1] = new_values
        else:
            keys.index_copy_(2, window.place, new_keys[:, :, None])
            values.index_copy_(2, window.place, new_values[:, :, None])
        return rotated[:, :queries]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, window: Window) -> Tensor:
        mixed = scaled_dot_product_attention(
            queries[:, :, None],
            keys[:, :, : window.reach],
            values[:, :, : window.reach],
            attn_mask=window.mask,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return mixed[:, :, 0]

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        total = x if delta is None else x + delta
        return total, norm(total, weight, epsilon)

    def gate(self, gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return activation(gate) * up


class KernelTokenOperations(TorchTokenOperations):
    """By the kernels' operations of a decode step: one launch each, and attention reads what is filled.

    silu: the model's activation is theirs. filled: take their attention; else torch's, over the whole cache.
    """

    def __init__(self, decoding: DecodeOperations, silu: bool, filled: bool) -> None:
        self.reads_whole_cache = not filled
        self._decoding = decoding
        self._silu = silu

    def window(self, state: DecodeState) -> Window:
        if self.reads_whole_cache:
            return super().window(state)
        return Window(state.first, state.length, state.length + 1, None, None)

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, window: Window
    ) -> Tensor:
        return self._decoding.rotate_and_store(qkv, cos, sin, keys, values, window.place)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, window: Window) -> Tensor:
        if self.reads_whole_cache:
            return super().attend(queries, keys, values, window)
        return self._decoding.decode_attention(queries, keys, values, window.first, window.filled)

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        return self._decoding.add_rms_norm(x, delta, weight, epsilon)

    def gate(self, gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        return self._decoding.silu_mul(gate_up) if self._silu else super().gate(gate_up, activation)
