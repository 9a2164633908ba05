"""Meters of memory that need no GPU: bytes kept for a backward pass, and the most bytes alive at a time.

Both count storages, not tensors, and work for tensors without data (the meta device) as for real ones: so the
activations of a 7B model can be measured on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def kept_for_backward(module: nn.Module) -> Iterator[list[Tensor]]:
    """The tensors that autograd saves inside the block, each storage once, without `module`'s own."""
    own = {x.untyped_storage()._cdata for x in (*module.parameters(), *module.buffers())}
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if key not in own:
            own.add(key)
            kept.append(x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        yield kept


def storage_bytes(tensors: list[Tensor]) -> int:
    return sum(x.untyped_storage().nbytes() for x in tensors)


class AliveBytes(TorchDispatchMode):
    """Counts the storages that operations make inside the block, until they are freed: `now` and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if function is torch.ops.aten._local_scalar_dense.default and arguments[0].is_meta:
            return False  # "is the mask all True": tensors without data have a mask that is not
        before = {x.untyped_storage()._cdata for x in arguments}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in before | self._known:
                    self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def attention_as_on_a_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by the operation a GPU runs where there is a mask, for tensors without data."""
    bias = None
    if attn_mask is not None:
        length = attn_mask.shape[-1]
        added = torch.zeros_like(attn_mask, dtype=query.dtype)
        added = nn.functional.pad(added, (0, -length % 16))[..., :length]
        bias = added.expand(*query.shape[:3], length)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, bias, torch.is_grad_enabled(), dropout_p, False, scale=scale)[0]
