"""The weight of the entropy bonus: fixed, or steered so that the entropy stays above a floor."""

from __future__ import annotations


def adapted_bonus(bonus: float, entropy: float, target: float, step: float, maximum: float) -> float:
    """The next coefficient of one level (Skywork-OR1's adaptive entropy control, arXiv 2505.22312).

    Up by `step` where the measured mean token entropy (nats) lies below `target`, down where above, within
    [0, maximum].
    """
    if not (step > 0 and maximum > 0 and target >= 0):
        raise ValueError(
            f"algorithm.entropy_target={target}, entropy_step={step}, entropy_maximum={maximum}: "
            "expected a target of 0 or more and the others above 0"
        )
    return min(max(bonus + (step if entropy < target else -step), 0.0), maximum)


def active_bonus(bonus: float, entropy: float, target: float) -> float:
    """The coefficient to use now: off while the entropy lies above `target` (2505.22312: alpha * 1[e <= target])."""
    return bonus if entropy <= target else 0.0
