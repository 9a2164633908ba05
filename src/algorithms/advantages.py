"""From rewards to advantages: pure functions of (total (N,), group_size), rollouts prompt-major.

Every function returns (N,) in the dtype of `total` and raises ValueError for rewards that are not finite
and for rollouts that are no whole groups. `group_size` is G, the rollouts of one prompt, at least 2: a
group of one has nothing to compare itself with.
"""

from __future__ import annotations

from torch import Tensor


def group_normalised(total: Tensor, group_size: int, epsilon: float = 1e-4) -> Tensor:
    """(r - mean) / (std + epsilon) over each group, std unbiased (GRPO, arXiv 2402.03300; T2I-R1, 2505.00703).

    A group whose rewards are all equal gets exactly zero, also where its mean is rounded.
    """
    deviation = _deviation(_grouped(total, group_size))
    return (deviation / (_grouped(total, group_size).std(dim=1, keepdim=True) + epsilon)).flatten()


def group_centred(total: Tensor, group_size: int) -> Tensor:
    """r - mean over each group, not divided by its std (Dr.GRPO, arXiv 2503.20783, section 3.2)."""
    return _deviation(_grouped(total, group_size)).flatten()


def without_signal(total: Tensor, group_size: int) -> Tensor:
    """(B,) bool: the groups whose rewards are all equal, which teach nothing."""
    groups = _grouped(total, group_size)
    return groups.amax(dim=1) == groups.amin(dim=1)


def share_without_signal(total: Tensor, group_size: int) -> Tensor:
    """The share (0-dim, in [0, 1]) of groups without signal."""
    return without_signal(total, group_size).to(total.dtype).mean()


def _grouped(total: Tensor, group_size: int) -> Tensor:
    """`total` as (B, G), checked."""
    if group_size < 2:
        raise ValueError(f"rollout.group_size={group_size}: expected at least 2, a group is compared within itself")
    if total.dim() != 1 or total.shape[0] == 0 or total.shape[0] % group_size:
        raise ValueError(f"rewards: shape {tuple(total.shape)}, expected (N,) with N a multiple of {group_size}")
    finite = total.isfinite()
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"rewards: not finite at rollouts {bad[:8]}{' ...' if len(bad) > 8 else ''}")
    return total.view(-1, group_size)


def _deviation(groups: Tensor) -> Tensor:
    """r - mean; exactly zero where a group's rewards are equal, though their mean may be rounded."""
    same = groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
    return (groups - groups.mean(dim=1, keepdim=True)).masked_fill(same, 0.0)
