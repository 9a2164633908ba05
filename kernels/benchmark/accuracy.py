"""The oracle at the real shapes, and how far the mean k3 of small differences is off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Operations, reference
from kernels.benchmark.contestants import FromLogits

# Tokens whose float64 rows are in memory at a time.
ROWS = 256


class Failed(RuntimeError):
    """The operations are wrong on this card; nothing is timed."""


class K3Error(NamedTuple):
    """Relative error of the mean k3 over a batch, against float64, by way of computing it."""

    apart: float
    mean_k3: float
    ours: float
    torch_float32: float
    torch_bfloat16: float


def hold_to_oracle(operations: Operations, data: FromLogits) -> float:
    """Compare log-prob, k3 and gradient with plain torch in float64; returns the largest error of log-prob.

    Raises Failed beyond 1e-5 of a log-prob, 4e-6 * |expm1(log ratio)| + 1e-11 of a k3 (and its own rounding),
    or two roundings of the gradient's dtype.
    """
    worst = 0.0
    for rows in _slices(data.ids.shape[1]):
        logits = data.logits.detach()[:, rows].requires_grad_()
        ids, ref = data.ids[:, rows], data.ref_logits[:, rows]
        upstream = (data.to_logp[:, rows], data.to_kl[:, rows])
        got = operations.token_statistics(logits, ids, ref_logits=ref, kl="k3", entropy=False)
        assert got.kl is not None
        (gradient,) = torch.autograd.grad((got.logp, got.kl), logits, upstream)
        exact = logits.detach().double().requires_grad_()
        want = reference.token_statistics(exact, ids, ref_logits=ref.double(), kl="k3", entropy=False)
        assert want.kl is not None
        assert want.log_ratio is not None
        (right,) = torch.autograd.grad((want.logp, want.kl), exact, [g.double() for g in upstream])
        error = ((got.logp - want.logp).abs() / want.logp.abs().clamp_min(1e-2)).max().item()
        bound = 4e-6 * want.log_ratio.expm1().abs() + 1e-11 + 1.2e-7 * want.kl
        if error > 1e-5 or bool(((got.kl - want.kl).abs() > bound).any()):
            raise Failed(f"{operations.name}: log-prob off by {error:.1e} relative, or k3 beyond its bound, at {rows}")
        rounding = 2 * torch.finfo(logits.dtype).eps
        if bool(((gradient - right).abs() > rounding * right.abs() + 1e-6 * right.abs().max()).any()):
            raise Failed(f"{operations.name}: the gradient is off by more than its rounding, at {rows}")
        worst = max(worst, error)
    return worst


def k3_table(operations: Operations, tokens: int, vocabulary: int, device: torch.device) -> Iterator[K3Error]:
    """Rows for differences from 1e-3 to 0.1: bf16 logits of policy and reference, tokens from the policy."""
    for apart in (0.003, 0.01, 0.03, 0.1):
        generator = torch.Generator(device).manual_seed(1)
        size = (1, tokens, vocabulary)
        policy = (2 * torch.randn(size, device=device, generator=generator)).bfloat16()
        ref = (policy.float() + apart * torch.randn(size, device=device, generator=generator)).bfloat16()
        ids = torch.multinomial(policy[0].float().softmax(-1), 1, generator=generator).view(1, tokens)
        exact = reference.token_statistics(policy.double(), ids, ref_logits=ref.double(), kl="k3", entropy=False).kl
        assert exact is not None
        ours = operations.token_statistics(policy, ids, ref_logits=ref, kl="k3", entropy=False).kl
        plain = reference.token_statistics(policy.float(), ids, ref_logits=ref.float(), kl="k3", entropy=False).kl
        assert ours is not None
        assert plain is not None
        mean = exact.mean().item()
        yield K3Error(
            apart,
            mean,
            *(abs(x.double().mean().item() / mean - 1) for x in (ours, plain, _k3_in_bfloat16(policy, ref, ids))),
        )


def _k3_in_bfloat16(policy: Tensor, ref: Tensor, ids: Tensor) -> Tensor:
    """What a trainer gets that takes log_softmax of bf16 logits in bf16."""
    logp, ref_logp = (x.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1).float() for x in (policy, ref))
    d = ref_logp - logp
    return d.expm1() - d


def _slices(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, ROWS):
        yield slice(start, min(start + ROWS, tokens))
