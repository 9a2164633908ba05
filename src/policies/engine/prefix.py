"""Contexts with a common beginning: which rows are read in full, which only at their last token, which not at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sharing:
    """How N left-padded contexts (N, C) are read with as few tokens as possible.

    ids, mask (U, C): the distinct rows; inverse (N,): the distinct row of each row. The first `hosts` distinct rows
    are read in full; the others, guests, are but for their last token the beginning of a host, and host_of
    (U - hosts,) says of which.
    """

    ids: Tensor
    mask: Tensor
    inverse: Tensor
    hosts: int
    host_of: Tensor


def share(ids: Tensor, mask: Tensor, enabled: bool = True) -> Sharing:
    """Find what the rows of a context have in common.

    Equal rows (the prompt of a group) are one. A row whose all but last tokens another, longer one begins with (the
    guidance branch: begin-of-sequence, pads, begin-of-image, of different lengths) is that one's guest. The other
    rows decide only what is shared, not the result.
    """
    if not enabled:
        rows = torch.arange(len(ids), device=ids.device)
        return Sharing(ids, mask, rows, len(ids), rows[:0])
    marked, inverse = torch.unique(torch.where(mask, ids, -1), dim=0, return_inverse=True)
    host = _longest_host(marked, marked >= 0)
    own = torch.arange(len(marked), device=ids.device)
    hosts, guests = own[host == own], own[host != own]
    order = torch.cat([hosts, guests])
    place = torch.empty_like(order).index_copy_(0, order, own)
    marked = marked[order]
    return Sharing(marked.clamp_min(0), marked >= 0, place[inverse], len(hosts), place[host[guests]])


def _longest_host(marked: Tensor, real: Tensor) -> Tensor:
    """For each row (U, C) the longest that begins with all its tokens but the last; itself if none is longer."""
    width = marked.shape[1]
    lengths = real.sum(1)
    column = torch.arange(width, device=marked.device)
    start = (width - lengths)[:, None]
    # Left-aligned, so that places are compared from the beginning.
    aligned = marked.gather(1, (start + column).clamp_max(width - 1))
    body = column < lengths[:, None] - 1
    begins = ((aligned[:, None] == aligned[None]) | ~body[:, None]).all(-1)  # [i, j]: j begins with i's body
    begins &= lengths[None] > lengths[:, None]
    length_of = torch.where(begins, lengths[None], 0)
    longest, host = length_of.max(1)
    return torch.where(longest > 0, host, torch.arange(len(marked), device=marked.device))
