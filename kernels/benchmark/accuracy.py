"""The oracle at the real shapes, and how far the mean k3 of small differences is off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Objective, Operations, TokenStatistics, reference
from kernels.benchmark.contestants import BETA, FromHidden, FromLogits

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
    got = operations.token_statistics(data.logits, data.ids, ref_logits=data.ref_logits, kl="k3", entropy=False)
    assert got.kl is not None
    upstream = (data.to_logp, data.to_kl)
    (gradient,) = torch.autograd.grad((got.logp, got.kl), data.logits, upstream)  # one launch, as it will be timed
    worst = 0.0
    for rows in _slices(data.ids.shape[1]):
        exact = data.logits.detach()[:, rows].double().requires_grad_()
        ids, ref = data.ids[:, rows], data.ref_logits[:, rows].double()
        want = reference.token_statistics(exact, ids, ref_logits=ref, kl="k3", entropy=False)
        assert want.kl is not None
        assert want.log_ratio is not None
        (right,) = torch.autograd.grad((want.logp, want.kl), exact, [g[:, rows].double() for g in upstream])
        error = ((got.logp[:, rows] - want.logp).abs() / want.logp.abs().clamp_min(1e-2)).max().item()
        bound = 4e-6 * want.log_ratio.expm1().abs() + 1e-11 + 1.2e-7 * want.kl
        # `not <=` rather than `>`: what is NaN is wrong.
        if not error <= 1e-5 or not bool(((got.kl[:, rows] - want.kl).abs() <= bound).all()):
            raise Failed(f"{operations.name}: log-prob off by {error:.1e} relative, or k3 beyond its bound, at {rows}")
        rounding = 2 * torch.finfo(gradient.dtype).eps
        off = (gradient[:, rows] - right).abs()
        if not bool((off <= rounding * right.abs() + 1e-6 * right.abs().max()).all()):
            raise Failed(f"{operations.name}: the gradient is off by more than its rounding, at {rows}")
        worst = max(worst, error)
    return worst


def hold_head_to_oracle(
    operations: Operations, data: FromHidden, *, kl: str = "k3", guidance_scale: float = 1.0, entropy: bool = False
) -> float:
    """Compare ops 2 and 3 with plain torch in float64; returns the largest error of log-prob, in nats.

    The logits are rounded to the features' dtype before they are summed, so with `step` its eps (at least 1e-5,
    for what a long sum in float32 loses) times the largest logit, raises Failed beyond: step of a log-prob, the
    matching bound of the KL and entropy, or six eps (at least 1e-4) of the gradient's norm over 256 tokens.
    Under guidance a token's neighbour stands in for its unconditional branch.
    """
    tokens, eps = data.ids.shape[1], torch.finfo(data.features.dtype).eps
    common = {"kl": kl, "entropy": entropy}
    guided = guidance_scale != 1.0
    branches: dict[str, Tensor] = {"ref_features": data.ref_features}
    if guided:
        branches["unconditional_features"] = data.features.detach().roll(1, 1)
        branches["ref_unconditional_features"] = data.ref_features.roll(1, 1)
    bonus = 0.01 if entropy else 0.0
    upstream = [x / tokens for x in (-1.0, BETA, -bonus)]

    def gradient_of(result: TokenStatistics, leaf: Tensor) -> Tensor:
        statistics = (result.logp, result.kl, result.entropy)
        parts = [g * x.sum() for g, x in zip(upstream, statistics, strict=True) if x is not None]
        return torch.autograd.grad(sum(parts), leaf)[0]  # type: ignore[arg-type]

    head = (data.features, data.weight, data.bias, data.ids)
    chunked = operations.head_statistics(*head, **branches, guidance_scale=guidance_scale, **common)  # type: ignore[arg-type]
    one = operations.one_pass_head(
        *head,
        **branches,
        guidance_scale=guidance_scale,
        objective=Objective("reinforce", beta=BETA, kl=kl, entropy_bonus=bonus, entropy=entropy),
        advantages=torch.ones_like(data.advantages),
        token_weights=data.weights,
        normaliser=float(tokens),
    )
    found = {
        "op 2": (chunked, gradient_of(chunked, data.features)),
        "op 3": (one.statistics, torch.autograd.grad(one.loss, data.features)[0]),
    }
    worst = 0.0
    weight, bias = data.weight.double(), data.bias.double()
    largest = 0.0
    for rows in _slices(tokens):
        leaf = data.features.detach()[:, rows].double().requires_grad_()
        exact = {name: x[:, rows].double() for name, x in branches.items()}
        ids = data.ids[:, rows]
        want = reference.head_statistics(leaf, weight, bias, ids, **exact, guidance_scale=guidance_scale, **common)  # type: ignore[arg-type]
        right = gradient_of(want, leaf)
        with torch.no_grad():
            mixed = leaf if not guided else torch.lerp(exact["unconditional_features"], leaf, guidance_scale)
            largest = max(largest, torch.nn.functional.linear(mixed, weight, bias).abs().max().item())
        step = max(eps, 1e-5) * largest
        for name, (got, gradient) in found.items():
            worst = max(worst, (got.logp[:, rows] - want.logp).abs().max().item())
            for statistic, bound in _head_bounds(want, kl, step).items():
                off = (getattr(got, statistic)[:, rows] - getattr(want, statistic)).abs()
                if not bool((off <= bound).all()):
                    raise Failed(f"{operations.name}, {name}: {statistic} off by up to {off.max():.1e}, at {rows}")
            share = ((gradient[:, rows] - right).norm() / right.norm()).item()
            if not share <= max(6 * eps, 1e-4):
                raise Failed(f"{operations.name}, {name}: the gradient is off by {share:.1e} of its norm, at {rows}")
    return worst


def _head_bounds(want: TokenStatistics, kl: str, step: float) -> dict[str, Tensor]:
    """How far statistics may be off, (1, R) each, where every logit may be off by `step`."""
    assert want.kl is not None
    assert want.log_ratio is not None
    bounds = {"logp": torch.full_like(want.logp, step), "log_ratio": torch.full_like(want.logp, 2 * step)}
    if kl == "exact":
        bounds["kl"] = 4 * step * ((2 * want.kl).sqrt() + step + want.kl)
    else:
        bounds["kl"] = 2 * step * (want.log_ratio.abs() + 2 * step).expm1()
    if want.entropy is not None:
        bounds["entropy"] = 4 * step * (1 + want.entropy)
    return bounds


def same_gradient(got: Tensor, wanted: Tensor) -> bool:
    """Whether two gradients of half precision are one, within a tenth of the norm: not a factor, sign or term off."""
    if got.shape != wanted.shape:
        return False
    return bool((got.float() - wanted.float()).norm() <= 0.1 * wanted.float().norm())


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
