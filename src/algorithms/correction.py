"""Correcting for a sampler whose log-probs differ from training's for the same weights.

Other kernels or another precision in the sampler make "on-policy" tokens slightly off-policy (Yao et al. 2025,
"Your efficient RL framework secretly brings you off-policy RL training"). The truncated importance weight
comes from IMPALA (arXiv 1802.01561, section 4.1, rho-bar).
"""

from __future__ import annotations

from torch import Tensor


def truncated_importance(old_logp: Tensor, rollout_logp: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(exp(old_logp - rollout_logp), cap) (N, T), without graph; 1 where the mask is off.

    old_logp: training's log-probs with the weights that sampled; rollout_logp: the sampler's own, of the same
    distribution (guided or conditional, as ``algorithm.logp`` says). The weights multiply the surrogate
    (``LossInputs.correction``); where that is one number a sequence (GSPO), their mean over it does. cap: above 1,
    e.g. 2; it bounds the variance at the price of some bias.
    """
    if not cap > 1:
        raise ValueError(f"algorithm.correction_cap={cap}: expected above 1")
    return (old_logp - rollout_logp).detach().masked_fill(~mask, 0).exp().clamp(max=cap)
