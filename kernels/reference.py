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

from kernels.kl import KL_NAMES, exact_kl, kl_estimate


class TokenStatistics(NamedTuple):
    """What a loss needs of each token, all (N, T), float32 (float64 from float64 inputs).

    logp: log-prob of the token, <= 0. log_ratio: ``ref_logp - logp``, None without a reference. kl: the
    chosen KL(policy || reference), None without one. entropy: in nats, >= 0, None unless asked for.
    """

    logp: Tensor
    log_ratio: Tensor | None
    kl: Tensor | None
    entropy: Tensor | None


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance ``u + w * (c - u)`` on logits, or on the features an affine head reads.

    Both of one shape; the result is float32 (float64 from float64).
    """
    c = conditional.to(_sum_dtype(conditional))
    return torch.lerp(unconditional.to(c.dtype), c, scale)


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
) -> TokenStatistics:
    """Log-prob, log ratio, KL and entropy of tokens `ids` under `logits`.

    logits (N, T, V) floating; ids (N, T) int64 in [0, V), at masked places too; unconditional (N, T, V),
    needed unless `guidance_scale` is 1 and then unused. The reference is either `ref_logits` (N, T, V), with
    `ref_unconditional` under guidance, or a ready `ref_logp` (N, T); without either there is no log ratio
    and no KL. `kl` is k1, k2, k3, exact (needs `ref_logits`) or None.

    Differentiable with respect to `logits`, and to `unconditional` if `unconditional_grad`; the reference
    gets no gradient. With `entropy_grad` off the entropy is for the logs only and keeps nothing in memory.
    Raises ValueError for shapes that do not match, ids out of range and options that contradict each other.
    """
    _check_logits(logits, ids, unconditional=unconditional, ref_logits=ref_logits, ref_unconditional=ref_unconditional)
    _check_options(
        ids,
        vocabulary=logits.shape[-1],
        temperature=temperature,
        guided=guidance_scale != 1.0,
        unconditional=unconditional,
        reference=ref_logits,
        ref_unconditional=ref_unconditional,
        ref_logp=ref_logp,
        kl=kl,
    )
    mixed = _mix(logits, unconditional, guidance_scale, unconditional_grad)
    ref_mixed = None
    if ref_logits is not None:
        with torch.no_grad():
            ref_mixed = _mix(ref_logits, ref_unconditional, guidance_scale, False)
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
    _check_head(features, weight, bias, ids, unconditional_features, "features")
    if ref_weight is None:
        ref_weight, ref_bias = weight, bias if ref_bias is None else ref_bias
    if ref_features is not None:
        _check_head(ref_features, ref_weight, ref_bias, ids, ref_unconditional_features, "ref_features")
        if ref_weight.shape[0] != weight.shape[0]:
            raise ValueError(f"ref_weight: shape {tuple(ref_weight.shape)}, but weight has {tuple(weight.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: expected at least 1, or None")
    _check_options(
        ids,
        vocabulary=weight.shape[0],
        temperature=temperature,
        guided=guidance_scale != 1.0,
        unconditional=unconditional_features,
        reference=ref_features,
        ref_unconditional=ref_unconditional_features,
        ref_logp=ref_logp,
        kl=kl,
    )
    mixed = _mix_features(features, unconditional_features, guidance_scale, unconditional_grad)
    ref_mixed = None
    if ref_features is not None:
        with torch.no_grad():
            ref_mixed = _mix_features(ref_features, ref_unconditional_features, guidance_scale, False)

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


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _mix(x: Tensor, unconditional: Tensor | None, scale: float, unconditional_grad: bool) -> Tensor:
    """The guided input; `x` itself where guidance is off."""
    if scale == 1.0 or unconditional is None:
        return x
    return guide(x, unconditional if unconditional_grad else unconditional.detach(), scale)


def _mix_features(x: Tensor, unconditional: Tensor | None, scale: float, unconditional_grad: bool) -> Tensor:
    """As `_mix`, back in the features' dtype: the head's matrix product runs in that."""
    return _mix(x, unconditional, scale, unconditional_grad).to(x.dtype)


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
    log_probs = _log_probs(logits, temperature)
    logp = _pick(log_probs, ids)
    entropies = None
    if entropy:
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropies = -(log_probs.exp() * log_probs).sum(-1)
    ref_log_probs = None
    if ref_logits is not None:
        with torch.no_grad():
            ref_log_probs = _log_probs(ref_logits.to(log_probs.dtype), temperature)
            ref_logp = _pick(ref_log_probs, ids)
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


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Log-softmax (..., V). Subtracts the maximum before the logarithm, so no entry is ever positive."""
    if temperature != 1.0:
        logits = logits.to(_sum_dtype(logits)) / temperature
    return torch.log_softmax(logits, dim=-1, dtype=_sum_dtype(logits))


def _pick(log_probs: Tensor, ids: Tensor) -> Tensor:
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _check_logits(logits: Tensor, ids: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless logits are (N, T, V), ids (N, T) and all the others shaped as the logits."""
    if logits.dim() != 3 or not logits.is_floating_point():
        raise ValueError(f"logits: {logits.dtype} of shape {tuple(logits.shape)}, expected floating (N, T, V)")
    _check_shape("ids", ids, tuple(logits.shape[:2]), "logits", logits)
    for name, value in others.items():
        if value is not None:
            _check_shape(name, value, tuple(logits.shape), "logits", logits)


def _check_head(
    features: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, unconditional: Tensor | None, name: str
) -> None:
    """Raise ValueError unless features (N, T, F), weight (V, F), bias (V,), ids (N, T) fit together."""
    if features.dim() != 3 or not features.is_floating_point():
        raise ValueError(f"{name}: {features.dtype} of shape {tuple(features.shape)}, expected floating (N, T, F)")
    _check_shape("ids", ids, tuple(features.shape[:2]), name, features)
    if weight.dim() != 2 or weight.shape[1] != features.shape[-1]:
        raise ValueError(f"weight: shape {tuple(weight.shape)}, but {name} has {tuple(features.shape)}")
    if bias is not None:
        _check_shape("bias", bias, (weight.shape[0],), "weight", weight)
    if unconditional is not None:
        _check_shape(f"unconditional {name}", unconditional, tuple(features.shape), name, features)


def _check_shape(name: str, value: Tensor, expected: tuple[int, ...], other: str, beside: Tensor) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{name}: shape {tuple(value.shape)}, expected {expected}, as {other} has {tuple(beside.shape)}"
        )


def _check_options(
    ids: Tensor,
    *,
    vocabulary: int,
    temperature: float,
    guided: bool,
    unconditional: Tensor | None,
    reference: Tensor | None,
    ref_unconditional: Tensor | None,
    ref_logp: Tensor | None,
    kl: str | None,
) -> None:
    """Raise ValueError for ids out of range and for options that contradict each other."""
    if ids.dtype != torch.int64:
        raise ValueError(f"ids: dtype {ids.dtype}, expected torch.int64")
    if ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"ids: values in [{low}, {high}], expected [0, {vocabulary}) for ids of shape {tuple(ids.shape)}"
            )
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a positive number")
    if guided and unconditional is None:
        raise ValueError("guidance_scale is not 1: the unconditional branch is missing")
    if guided and reference is not None and ref_unconditional is None:
        raise ValueError("guidance_scale is not 1: the reference's unconditional branch is missing")
    if kl is not None and kl not in KL_NAMES:
        raise ValueError(f"kl={kl!r}: expected one of {', '.join(KL_NAMES)}, or None")
    if kl == "exact" and reference is None:
        raise ValueError(
            "kl='exact' sums over the vocabulary: it needs the reference's logits or features, not ref_logp"
        )
    if reference is not None and ref_logp is not None:
        raise ValueError("two references: give either the reference's logits or features, or ref_logp")
    if ref_logp is not None and ref_logp.shape != ids.shape:
        raise ValueError(f"ref_logp: shape {tuple(ref_logp.shape)}, expected {tuple(ids.shape)}, the shape of ids")
