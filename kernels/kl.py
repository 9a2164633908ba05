"""KL(policy || reference): the estimators of one sampled token, and the exact sum over the vocabulary.

With ``d = ref_logp - logp`` of a token drawn from the policy (Schulman 2020, "Approximating KL divergence",
joschu.net/blog/kl-approx.html; k3 is the KL of GRPO, arXiv 2402.03300, eq. 4):

====== ================= ===============================================================================
name   value             as an estimate, and what its gradient is on average when it stands in the loss
====== ================= ===============================================================================
k1     -d                unbiased, any sign; gradient zero: of use in the reward only
k2     d**2 / 2          biased, never negative; gradient of KL(policy || reference)
k3     exp(d) - d - 1    unbiased, never negative; gradient of KL(reference || policy)
exact  sum_v p log(p/r)  the KL itself, no sampling noise; needs the reference's whole rows
====== ================= ===============================================================================
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

KlName = Literal["k1", "k2", "k3", "exact"]
KL_NAMES: tuple[str, ...] = get_args(KlName)
ESTIMATORS: tuple[str, ...] = ("k1", "k2", "k3")

# Beyond this log ratio exp(d) leaves the region where expm1 is worth its care, and nears overflow.
_LARGE_LOG_RATIO = 10.0


class _K3(torch.autograd.Function):
    """exp(d) - d - 1 with both the value and the derivative expm1(d) free of cancellation.

    Autograd's derivative of ``expm1(d) - d`` is ``(expm1(d) + 1) - 1``, which loses a small d.
    """

    @staticmethod
    def forward(d: Tensor) -> Tensor:
        # A library's expm1 may be one unit in the last place below d; k3 is never negative.
        return (torch.expm1(d) - d).clamp_min_(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (d,) = ctx.saved_tensors
        # A masked token's log ratio may be beyond 88, where expm1 overflows: 0 * inf must not become NaN.
        return torch.where(grad == 0, 0, grad * torch.expm1(d))


def k3(log_ratio: Tensor) -> Tensor:
    """``exp(d) - d - 1`` of ``d = log_ratio`` (any shape, floating), elementwise, never negative."""
    return _K3.apply(log_ratio)


def estimate_slope(log_ratio: Tensor, name: str) -> Tensor:
    """The derivative of :func:`kl_estimate` with respect to logp, in closed form; same arguments and errors."""
    if name == "k1":
        return torch.ones_like(log_ratio)
    if name == "k2":
        return -log_ratio
    if name == "k3":
        return -torch.expm1(log_ratio)
    raise ValueError(f"kl={name!r}: no estimator on log ratios; choose one of {', '.join(ESTIMATORS)}")


def kl_estimate(log_ratio: Tensor, name: str) -> Tensor:
    """The estimator `name` (k1, k2, k3) of KL(policy || reference) for each token.

    log_ratio: ``ref_logp - logp``, any shape. Raises ValueError for another name, ``exact`` included: that
    one is no function of the log ratio.
    """
    if name == "k1":
        return -log_ratio
    if name == "k2":
        return 0.5 * log_ratio.square()
    if name == "k3":
        return k3(log_ratio)
    raise ValueError(f"kl={name!r}: no estimator on log ratios; choose one of {', '.join(ESTIMATORS)}")


def exact_kl(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """KL(policy || reference) (...,) of whole rows of log-probs (..., V); never negative.

    Summed as ``p * k3(d)`` rather than ``-p * d``: equal, as both rows sum to one, but every summand is
    non-negative, and a rounding error common to a row (that of its log-sum-exp) drops out to first order
    instead of burying a small KL. Where d is large, ``p * exp(d)`` is written as the reference's
    probability, so that nothing overflows.
    """
    d = ref_log_probs - log_probs
    p = log_probs.exp()
    near = p * k3(d.clamp(max=_LARGE_LOG_RATIO))
    far = ref_log_probs.exp() - p - p * d
    return torch.where(d <= _LARGE_LOG_RATIO, near, far).sum(-1)
