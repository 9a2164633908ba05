"""The one-pass head: loss, statistics and gradient out of the forward, with three matrix products, not five.

Where a token's objective has a closed form (:mod:`kernels.objective`), the gradient with respect to a chunk's
logits is known while they are still in memory. So each chunk of tokens is multiplied out for policy and
reference, reduced to its statistics, turned into its gradient in place, and multiplied back to the features;
nothing of the size of the logits outlives it, and nothing is computed again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.checks import check_terms
from kernels.head import HeadGradient, HeadInputs, as_autocast, chunks, flat, prepare_head, product, sum_dtype
from kernels.kl import estimate_slope, exact_kl, kl_estimate
from kernels.objective import Objective, TokenTerms, surrogate_and_slope
from kernels.reference import TokenStatistics, log_probs_of, pick


class OnePass(NamedTuple):
    """loss (0-dim) has the graph to features and head; the statistics (N, T) have none."""

    loss: Tensor
    statistics: TokenStatistics


class Rows(NamedTuple):
    """A chunk's logits (R, V), what its tokens are, and what is known of them; `logits` may be overwritten."""

    logits: Tensor
    ids: Tensor
    ref_logits: Tensor | None
    ref_logp: Tensor | None
    terms: TokenTerms
    objective: Objective
    temperature: float


class RowResults(NamedTuple):
    """Losses and statistics (R,), and the gradient (R, V) of the losses' sum if asked for, in the logits' dtype."""

    losses: Tensor
    statistics: TokenStatistics
    gradient: Tensor | None


RowFunction = Callable[[Rows, bool], RowResults]


def rows_in_torch(rows: Rows, want_gradient: bool) -> RowResults:
    """The objective of a chunk's tokens and its gradient in closed form; the formulas: kernels/README.md."""
    objective, terms, temperature = rows.objective, rows.terms, rows.temperature
    log_probs = log_probs_of(rows.logits, temperature)
    probs = log_probs.exp()
    logp = pick(log_probs, rows.ids)
    entropy = -(probs * log_probs).sum(-1) if objective.entropy else None
    ref_logp, ref_log_probs = rows.ref_logp, None
    if rows.ref_logits is not None:
        ref_log_probs = log_probs_of(rows.ref_logits.to(log_probs.dtype), temperature)
        ref_logp = pick(ref_log_probs, rows.ids)
    log_ratio = None if ref_logp is None else ref_logp.to(logp.dtype) - logp
    kl = None
    if objective.kl == "exact" and ref_log_probs is not None:
        kl = exact_kl(log_probs, ref_log_probs)
    elif objective.kl is not None and log_ratio is not None:
        kl = kl_estimate(log_ratio, objective.kl)

    weights = terms.weights
    value, slope = surrogate_and_slope(objective, logp, terms)
    to_logp = -weights * slope
    if objective.beta and kl is not None and log_ratio is not None:
        value = value - objective.beta * kl
        if objective.kl is not None and objective.kl != "exact":
            to_logp = to_logp + weights * objective.beta * estimate_slope(log_ratio, objective.kl)
    # What a token that does not count is multiplied by may be infinite: 0 * inf must not become NaN.
    unused = weights == 0
    to_logp = to_logp.masked_fill(unused, 0)
    if objective.entropy_bonus and entropy is not None:
        value = value + objective.entropy_bonus * entropy
    results = RowResults((-weights * value).masked_fill(unused, 0), TokenStatistics(logp, log_ratio, kl, entropy), None)
    if not want_gradient:
        return results

    pull = to_logp.unsqueeze(-1)
    if objective.entropy_bonus and entropy is not None:
        pull = pull - (objective.entropy_bonus * weights).unsqueeze(-1) * (log_probs + entropy.unsqueeze(-1))
    if objective.beta and objective.kl == "exact" and kl is not None and ref_log_probs is not None:
        pull = pull + (objective.beta * weights).unsqueeze(-1) * (ref_log_probs - log_probs + kl.unsqueeze(-1))
    gradient = probs.mul_(pull.masked_fill(unused.unsqueeze(-1), 0)).neg_()
    gradient.scatter_add_(-1, rows.ids.unsqueeze(-1), to_logp.unsqueeze(-1))
    return results._replace(gradient=gradient.div_(temperature).to(rows.logits.dtype))


def one_pass_head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    *,
    objective: Objective,
    advantages: Tensor,
    token_weights: Tensor,
    normaliser: float | Tensor,
    old_logp: Tensor | None = None,
    correction: Tensor | None = None,
    temperature: float = 1.0,
    unconditional_features: Tensor | None = None,
    guidance_scale: float = 1.0,
    ref_features: Tensor | None = None,
    ref_weight: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ref_unconditional_features: Tensor | None = None,
    ref_logp: Tensor | None = None,
    chunk_size: int | None = None,
    validate: bool = True,
    once: bool = False,
    rows: RowFunction = rows_in_torch,
) -> OnePass:
    """``-sum(token_weights * J) / normaliser`` with J of :class:`kernels.objective.Objective`.

    features (N, T, F), weight (V, F), bias (V,) or None, ids (N, T) and the reference as for
    :func:`kernels.reference.head_statistics`; advantages (N,); token_weights (N, T), 0 where a token does not
    count; old_logp and correction (N, T) or None, for 1. The loss has a gradient to features, weight and bias
    where those require one, never to the unconditional branch; its own backward pass may run more than once.
    The gradient of the features is kept in their dtype from the forward pass on, a power of two away from its
    final size, so that half precision neither under- nor overflows.

    chunk_size: at most so many tokens have their logits in memory at a time; None: all (in torch) or as many as
    stay in cache (in Triton). once: the backward pass hands out the kept gradient itself instead of a copy; a
    second one then raises RuntimeError. rows: what computes a chunk. Raises ValueError as `head_statistics` does.
    """
    inputs = prepare_head(
        features,
        weight,
        bias,
        ids,
        temperature=temperature,
        unconditional_features=unconditional_features,
        guidance_scale=guidance_scale,
        unconditional_grad=False,
        ref_features=ref_features,
        ref_weight=ref_weight,
        ref_bias=ref_bias,
        ref_unconditional_features=ref_unconditional_features,
        ref_logp=ref_logp,
        kl=objective.kl if ref_features is not None or ref_logp is not None else None,
        chunk_size=chunk_size,
        validate=validate,
    )
    check_terms(ids, advantages, token_weights, old_logp, correction)
    if not isinstance(normaliser, Tensor) and not normaliser > 0:
        raise ValueError(f"normaliser={normaliser}: expected above 0")
    if objective.beta and ref_features is None and ref_logp is None:
        raise ValueError(
            f"beta={objective.beta} weights a KL, but there is no reference: give ref_features or ref_logp"
        )
    inputs = as_autocast(inputs)
    gain = _power_of_two(normaliser)
    dtype = sum_dtype(inputs.features)
    terms = TokenTerms(
        flat(advantages.to(dtype).unsqueeze(1).expand_as(ids)),
        flat(token_weights.to(dtype) * (gain / normaliser)),
        None if old_logp is None else flat(old_logp),
        None if correction is None else flat(correction),
    )
    linear = (inputs.features, inputs.weight, inputs.bias)
    want = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in linear)
    with torch.no_grad(), torch.autocast(inputs.features.device.type, enabled=False):
        loss, statistics, gradients = _run(inputs, ref_logp, terms, objective, temperature, chunk_size, rows, want)
    if any(x is not None for x in gradients):
        loss = _KnownGradient.apply(loss, once, *linear, *gradients)
    return OnePass(loss / gain, statistics)


def _run(
    inputs: HeadInputs,
    ref_logp: Tensor | None,
    terms: TokenTerms,
    objective: Objective,
    temperature: float,
    chunk_size: int | None,
    rows: RowFunction,
    want: tuple[bool, ...],
) -> tuple[Tensor, TokenStatistics, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """All chunks: the loss, the statistics (N, T), the gradients of features, weight and bias (None: not wanted)."""
    features, weight, bias, ids, ref_features, ref_weight, ref_bias = inputs
    rows_in, flat_ids = features.flatten(0, 1), flat(ids)
    ref_rows_in = None if ref_features is None else ref_features.flatten(0, 1)
    ref_given = None if ref_logp is None else flat(ref_logp)
    tokens, vocabulary = rows_in.shape[0], weight.shape[0]
    to_features = torch.empty_like(rows_in, memory_format=torch.contiguous_format) if want[0] else None
    head = HeadGradient(weight, bias, want[1], want[2])
    size = min(chunk_size or tokens, tokens)
    buffer = rows_in.new_empty(size, vocabulary)
    ref_buffer = None if ref_rows_in is None else ref_rows_in.new_empty(size, vocabulary)
    loss = rows_in.new_zeros((), dtype=sum_dtype(rows_in))
    parts: list[TokenStatistics] = []
    for index in chunks(tokens, chunk_size):
        x, count = rows_in[index], index.stop - index.start
        ref_logits = None
        if ref_rows_in is not None and ref_buffer is not None:
            ref_logits = product(ref_rows_in[index], ref_weight, ref_bias, ref_buffer[:count])
        results = rows(
            Rows(
                product(x, weight, bias, buffer[:count]),
                flat_ids[index],
                ref_logits,
                None if ref_given is None else ref_given[index],
                terms.rows(index),
                objective,
                temperature,
            ),
            any(want),
        )
        loss = loss + results.losses.sum()
        parts.append(results.statistics)
        if results.gradient is not None:
            if to_features is not None:
                torch.mm(results.gradient, weight, out=to_features[index])
            head.add(results.gradient, x)
    to_weight, to_bias = head.like(weight, bias)
    to_features = None if to_features is None else to_features.view_as(features)
    return loss, _joined(parts, inputs, ref_logp is not None, objective), (to_features, to_weight, to_bias)


def _joined(parts: list[TokenStatistics], inputs: HeadInputs, given: bool, objective: Objective) -> TokenStatistics:
    """The chunks' statistics as (N, T)."""
    ids = inputs.ids
    if parts:
        columns = zip(*parts, strict=True)
        return TokenStatistics(*(None if c[0] is None else torch.cat(c).view(ids.shape) for c in columns))  # type: ignore[arg-type]
    referred = given or inputs.ref_features is not None
    present = (True, referred, referred and objective.kl is not None, objective.entropy)
    nothing = inputs.features.new_empty(ids.shape, dtype=sum_dtype(inputs.features))
    return TokenStatistics(*(nothing.clone() if there else None for there in present))  # type: ignore[arg-type]


class _KnownGradient(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, once: bool, *inputs_and_gradients: Tensor | None) -> Tensor:
        ctx.once, ctx.used = once, False
        ctx.save_for_backward(*inputs_and_gradients[3:])
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.once and ctx.used:
            raise RuntimeError(
                "once=True: the first backward pass used the stored gradient; a second one is not possible"
            )
        ctx.used = True
        scale = torch.Tensor.mul_ if ctx.once else torch.mul
        gradients = [None if g is None else scale(g, upstream) for g in ctx.saved_tensors]
        return None, None, *gradients, None, None, None


def _power_of_two(normaliser: float | Tensor) -> float:
    """The power of two next to a normaliser; 1 for one on a device, which is not waited for, and for infinity."""
    if isinstance(normaliser, Tensor) or not math.isfinite(normaliser):
        return 1.0
    return 2.0 ** round(math.log2(normaliser))
