"""Token statistics in plain torch: the oracle, the fallback without a GPU, the benchmark's baseline.

Shapes: N rollouts, T tokens, V vocabulary, F features. With ``c`` the logits, ``u`` the unconditional
ones, ``w`` the guidance scale and ``tau`` the temperature, the distribution of a token is
``softmax((u + w * (c - u)) / tau)``; log-prob, log ratio, KL and entropy are all of that distribution.
Logits are finite. Everything is summed in float32, or in float64 where the input is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.checks import check_logits, check_options
from kernels.head import mix, prepare_head, sum_dtype
from kernels.kl import exact_kl, kl_estimate


class TokenStatistics(NamedTuple):
    """What a loss needs of each token, all (N, T), float32 (float64 from float64 inputs).

    logp: log-prob of the token, <= 0. log_ratio: ``ref_logp - logp``, None without a reference. kl: the
    chosen KL(policy || reference), None without one. entropy: in nats, >= 0, None unless asked for.
    """

    logp: Tensor
    log_ratio: Tensor | None
    kl: Tensor | None
    entropy: Tensor | None


def token_statistics(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    unconditional: Tensor | None = None,
    guidance_scale: float = 1.0,
    unconditional_grad: bool = False,
    ref_logits: Tensor | None = None,
    ref_unconditional: Tensor | None = None,
    ref_logp: Tensor | None = None,
    kl: str | None = "k3",
    entropy: bool = True,
    entropy_grad: bool = True,
    validate: bool = True,
) -> TokenStatistics:
    """Log-prob, log ratio, KL and entropy of tokens `ids` under `logits`.

    logits (N, T, V) floating; ids (N, T) int64 in [0, V), at masked places too; unconditional (N, T, V),
    needed unless `guidance_scale` is 1 and then unused. The reference is either `ref_logits` (N, T, V), with
    `ref_unconditional` under guidance, or a ready `ref_logp` (N, T); without either there is no log ratio
    and no KL. `kl` is k1, k2, k3, exact (needs `ref_logits`) or None.

    Differentiable with respect to `logits`, and to `unconditional` if `unconditional_grad`; the reference
    gets no gradient. With `entropy_grad` off the entropy is for the logs only and keeps nothing in memory.
    `validate` off leaves out the look at the ids' values, for which a GPU has to be waited for.
    Raises ValueError for shapes that do not match, ids out of range and options that contradict each other.
    """
    check_logits(logits, ids, unconditional=unconditional, ref_logits=ref_logits, ref_unconditional=ref_unconditional)
    check_options(
        ids,
        vocabulary=logits.shape[-1],
        temperature=temperature,
        guided=guidance_scale != 1.0,
        unconditional=unconditional,
        reference=ref_logits,
        ref_unconditional=ref_unconditional,
        ref_logp=ref_logp,
        kl=kl,
        validate=validate,
    )
    mixed = mix(logits, unconditional, guidance_scale, unconditional_grad)
    ref_mixed = None
    if ref_logits is not None:
        with torch.no_grad():
            ref_mixed = mix(ref_logits, ref_unconditional, guidance_scale, False)
    return _statistics(mixed, ids, ref_mixed, ref_logp, temperature, kl, entropy, entropy_grad)


def head_statistics(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    unconditional_features: Tensor | None = None,
    guidance_scale: float = 1.0,
    unconditional_grad: bool = False,
    ref_features: Tensor | None = None,
    ref_weight: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ref_unconditional_features: Tensor | None = None,
    ref_logp: Tensor | None = None,
    kl: str | None = "k3",
    entropy: bool = True,
    entropy_grad: bool = True,
    chunk_size: int | None = None,
    validate: bool = True,
) -> TokenStatistics:
    """:func:`token_statistics` of the logits ``features @ weight.T + bias``.

    features (N, T, F); weight (V, F); bias (V,) or None; ids (N, T). The reference's head is `ref_weight`
    and `ref_bias`, or the policy's own where `ref_weight` is None (an adapter leaves the head alone).
    Guidance mixes the features before the matrix product: an affine head makes that the same as mixing the
    logits, for half of the work.

    `chunk_size`: at most so many tokens have their logits in memory at a time; they are computed again for
    the gradient. None holds all N*T rows at once. Gradients reach features, weight and bias where those
    require them, and `unconditional_features` if `unconditional_grad`.
    """
    mixed, weight, bias, ids, ref_mixed, ref_weight, ref_bias = prepare_head(
        features,
        weight,
        bias,
        ids,
        temperature=temperature,
        unconditional_features=unconditional_features,
        guidance_scale=guidance_scale,
        unconditional_grad=unconditional_grad,
        ref_features=ref_features,
        ref_weight=ref_weight,
        ref_bias=ref_bias,
        ref_unconditional_features=ref_unconditional_features,
        ref_logp=ref_logp,
        kl=kl,
        chunk_size=chunk_size,
        validate=validate,
    )

    def rows(
        x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, ref_x: Tensor | None, ref_logp: Tensor | None
    ) -> TokenStatistics:
        ref_logits = None
        if ref_x is not None:
            with torch.no_grad():
                ref_logits = torch.nn.functional.linear(ref_x, ref_weight, ref_bias)
        logits = torch.nn.functional.linear(x, weight, bias)
        return _statistics(logits, ids, ref_logits, ref_logp, temperature, kl, entropy, entropy_grad)

    if chunk_size is None or ids.numel() <= chunk_size:
        return rows(mixed, weight, bias, ids, ref_mixed, ref_logp)
    pieces = zip(*(_tokens_in_chunks(x, ids, chunk_size) for x in (mixed, ids, ref_mixed, ref_logp)), strict=True)
    parts = [
        # Not reentrant: only so do the head's own parameters get their gradients.
        checkpoint(rows, x, weight, bias, chosen, ref_x, ref, use_reentrant=False, preserve_rng_state=False)
        for x, chosen, ref_x, ref in pieces
    ]
    logp, *others = (
        None if column[0] is None else torch.cat(column).view(ids.shape) for column in zip(*parts, strict=True)
    )
    assert logp is not None
    return TokenStatistics(logp, *others)


def _tokens_in_chunks(x: Tensor | None, ids: Tensor, size: int) -> Sequence[Tensor | None]:
    """Pieces of x (N, T, ...) of at most `size` tokens; as many Nones where there is no x."""
    if x is None:
        return [None] * math.ceil(ids.numel() / size)
    return x.flatten(0, 1).split(size)


def _statistics(
    logits: Tensor,
    ids: Tensor,
    ref_logits: Tensor | None,
    ref_logp: Tensor | None,
    temperature: float,
    kl: str | None,
    entropy: bool,
    entropy_grad: bool,
) -> TokenStatistics:
    """The statistics of guided logits (..., V) and ids (...), all arguments checked."""
    log_probs = log_probs_of(logits, temperature)
    logp = pick(log_probs, ids)
    entropies = None
    if entropy:
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropies = -(log_probs.exp() * log_probs).sum(-1)
    ref_log_probs = None
    if ref_logits is not None:
        with torch.no_grad():
            ref_log_probs = log_probs_of(ref_logits.to(log_probs.dtype), temperature)
            ref_logp = pick(ref_log_probs, ids)
    if ref_logp is None:
        return TokenStatistics(logp, None, None, entropies)
    log_ratio = ref_logp.detach().to(logp.dtype) - logp
    if kl is None:
        divergence = None
    elif kl == "exact" and ref_log_probs is not None:
        divergence = exact_kl(log_probs, ref_log_probs)
    else:
        divergence = kl_estimate(log_ratio, kl)
    return TokenStatistics(logp, log_ratio, divergence, entropies)


def log_probs_of(logits: Tensor, temperature: float) -> Tensor:
    """Log-softmax (..., V). Subtracts the maximum before the logarithm, so no entry is ever positive."""
    if temperature != 1.0:
        logits = logits.to(sum_dtype(logits)) / temperature
    return torch.log_softmax(logits, dim=-1, dtype=sum_dtype(logits))


def pick(log_probs: Tensor, ids: Tensor) -> Tensor:
    """The entries (...,) of log-probs (..., V) that ids (...,) name."""
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
