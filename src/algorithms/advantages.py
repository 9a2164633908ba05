"""From rewards to advantages: pure functions of (total (N,), group_size), rollouts prompt-major.

Every function returns (N,) in the dtype of `total` and raises ValueError for rewards that are not finite
and for rollouts that are no whole groups. `group_size` is G, the rollouts of one prompt, at least 2: a
group of one has nothing to compare itself with.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def group_normalised(total: Tensor, group_size: int, epsilon: float = 1e-4) -> Tensor:
    """(r - mean) / (std + epsilon) over each group, std unbiased (GRPO, arXiv 2402.03300; T2I-R1, 2505.00703).

    A group whose rewards are all equal gets exactly zero, also where its mean is rounded.
    """
    deviation = _deviation(_grouped(total, group_size))
    return (deviation / (_grouped(total, group_size).std(dim=1, keepdim=True) + epsilon)).flatten()


def group_centred(total: Tensor, group_size: int) -> Tensor:
    """Rewards minus their group's mean, not divided by its std (Dr.GRPO, arXiv 2503.20783, section 3.2)."""
    return _deviation(_grouped(total, group_size)).flatten()


def leave_one_out(total: Tensor, group_size: int) -> Tensor:
    """Rewards minus the mean of the group's *other* rewards (RLOO, arXiv 2402.14740; Kool et al. 2019)."""
    return _deviation(_grouped(total, group_size)).flatten() * (group_size / (group_size - 1))


def batch_normalised(total: Tensor, group_size: int, epsilon: float = 1e-4) -> Tensor:
    """(r - mean) / (std + epsilon) over the whole prompt batch, all ranks (REINFORCE++, arXiv 2501.03262).

    A prompt's difficulty stays in the advantage: sensible only where all prompts' rewards share a scale.
    """
    return _over_batch(_grouped(total, group_size).flatten(), epsilon)


def group_centred_batch_normalised(total: Tensor, group_size: int, epsilon: float = 1e-4) -> Tensor:
    """Rewards minus their group's mean, over the std of the whole prompt batch (REINFORCE++-baseline, 2501.03262)."""
    return _over_batch(_deviation(_grouped(total, group_size)).flatten(), epsilon)


def weigh_levels(advantages: Tensor, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The same advantages (N,) for every level, times its weight (>= 0).

    Every surrogate is linear in a factor on the advantage, so this weighs a level's policy term and leaves its
    KL and entropy alone: weight 0 trains the other level only, with the KL still on both. Raises ValueError
    for a negative weight, or none above 0.
    """
    if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"algorithm.level_weights={dict(weights)}: expected none below 0 and one above")
    return {name: advantages * weight for name, weight in weights.items()}


def without_signal(total: Tensor, group_size: int, tolerance: float = 0.0) -> Tensor:
    """(B,) bool: the groups whose rewards are all equal (within `tolerance`, >= 0), which teach nothing.

    DAPO replaces them (arXiv 2503.14476, eq. 11): :func:`src.training.options.dynamic_sampling.refill`.
    """
    groups = _grouped(total, group_size)
    return groups.amax(dim=1) - groups.amin(dim=1) <= tolerance


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
    """Rewards minus the group's mean; exactly zero where all are equal, though their mean may be rounded."""
    same = groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
    return (groups - groups.mean(dim=1, keepdim=True)).masked_fill(same, 0.0)


def _over_batch(values: Tensor, epsilon: float) -> Tensor:
    """(x - mean) / (std + epsilon) over all of them; exactly zero where all are equal."""
    if (values == values[0]).all():
        return values * 0
    return (values - values.mean()) / (values.std() + epsilon)
