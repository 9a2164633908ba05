"""Tensors cut over ranks (DTensor) and whole ones, each made of the other. Plain tensors pass through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, detached. Of a cut one every rank must ask at once."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal on all ranks, cut as `like` is, and moved there; the dtype stays. Nothing is sent."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def write_whole(target: Tensor, value: Tensor) -> None:
    """Put a whole tensor, equal on all ranks, into one that may be cut, in place."""
    target.copy_(cut_like(value, target))


def kept_whole(tensor: Tensor, keep: bool) -> Tensor | None:
    """`whole` on the CPU for who keeps it, None for the other ranks, which only take part in the gathering."""
    gathered = whole(tensor)
    return gathered.cpu() if keep else None
