"""Converts between sharded tensors (DTensor) and whole ones. Plain tensors pass through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, detached. For a sharded one all ranks must call this at once."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal on all ranks, sharded like `like`, on its device; the dtype stays. Nothing is sent."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def write_whole(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, equal on all ranks, in place into one that may be sharded."""
    target.copy_(cut_like(value, target))


def kept_whole(tensor: Tensor, keep: bool) -> Tensor | None:
    """`whole` on the CPU for the rank that keeps it, None for the others, which only take part in the gather."""
    gathered = whole(tensor)
    return gathered.cpu() if keep else None
