"""The kernel of the one-pass head: a row's statistics, its objective, and the gradient in the logits' place."""

from __future__ import annotations

# ruff: noqa: N803 (compile-time constants are capitals, as in Triton's own code)
import triton
import triton.language as tl
from torch import Tensor

from kernels.one_pass import Rows
from kernels.triton.device import estimate, estimate_slope, sweep, write_gradient
from kernels.triton.rows import (
    COMPILE_OPTIONS,
    EXACT_KL,
    KL_CODES,
    RowOutputs,
    launch_shape,
    on_device_of,
)

SURROGATE_CODES = {"reinforce": 0, "clipped": 1, "weight_clipped": 2}


@triton.jit
def one_pass_kernel(
    logits,
    ref_logits,
    ref_logp,
    ids,
    advantages,
    weights,
    old_logp,
    correction,
    logp_out,
    ratio_out,
    kl_out,
    entropy_out,
    loss_out,
    V,
    inverse_temperature,
    lowest,
    highest,
    beta,
    bonus,
    KL: tl.constexpr,
    PENALTY: tl.constexpr,
    BONUS: tl.constexpr,
    SURROGATE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c = logits + row * V
    ref_c = None
    if ref_logits is not None:
        ref_c = ref_logits + row * V
    target = tl.load(ids + row)
    known = (target >= 0) & (target < V)
    target = tl.where(known, target, 0)
    logp, picked, shift, log_ratio, kl, entropy = sweep(
        c,
        None,
        ref_c,
        None,
        target,
        V,
        1.0,
        inverse_temperature,
        EXACT=KL == EXACT_KL,
        ENTROPY=entropy_out is not None,
        BLOCK=BLOCK,
        EVEN=EVEN,
    )
    logp = tl.where(known, logp, float("nan"))
    tl.store(logp_out + row, logp)
    if ref_logp is not None:
        log_ratio = tl.load(ref_logp + row) - logp
    if ratio_out is not None:
        tl.store(ratio_out + row, log_ratio)
    if (KL != 0) and (KL != EXACT_KL):
        kl = estimate(log_ratio, KL)
    if kl_out is not None:
        tl.store(kl_out + row, kl)
    if entropy_out is not None:
        tl.store(entropy_out + row, entropy)

    # The objective of the token and its slope: kernels/objective.py says the same in torch.
    weight = tl.load(weights + row)
    advantage = tl.load(advantages + row)
    value = advantage * logp
    slope = advantage
    if SURROGATE != 0:
        ratio = 1.0
        if old_logp is not None:
            ratio = tl.exp(tl.where(weight != 0.0, logp - tl.load(old_logp + row), 0.0))
        bounded = tl.minimum(tl.maximum(ratio, lowest), highest) * advantage
        if SURROGATE == 1:
            free = ratio * advantage
            value = tl.minimum(free, bounded)
            slope = tl.where(free <= bounded, free, 0.0)
        else:
            value = bounded * logp
            slope = bounded
    if correction is not None:
        trust = tl.load(correction + row)
        value *= trust
        slope *= trust
    to_logp = -weight * slope
    if PENALTY:
        value -= beta * kl
        if KL != EXACT_KL:
            to_logp += weight * beta * estimate_slope(log_ratio, KL)
    if BONUS:
        value += bonus * entropy
    tl.store(loss_out + row, tl.where(weight != 0.0, -weight * value, 0.0))

    if GRADIENT:
        # What a token that does not count is multiplied by may be infinite: 0 * inf must not become NaN.
        to_logp = tl.where(weight != 0.0, to_logp, 0.0)
        log_ratio = tl.where(weight != 0.0, log_ratio, 0.0)
        kl = tl.where(weight != 0.0, kl, 0.0)
        entropy = tl.where(weight != 0.0, entropy, 0.0)
        write_gradient(
            c,
            None,
            ref_c,
            None,
            target,
            V,
            1.0,
            inverse_temperature,
            c,
            None,
            logp,
            picked,
            shift,
            log_ratio,
            kl,
            entropy,
            to_logp,
            weight * beta,
            -weight * bonus,
            EXACT=PENALTY and (KL == EXACT_KL),
            ENTROPY=BONUS,
            BLOCK=BLOCK,
            EVEN=EVEN,
        )


def one_pass_rows(rows: Rows, out: RowOutputs, losses: Tensor, gradient: bool) -> None:
    """Fill `out` and `losses`; gradient: put that of the losses' sum in the place of the logits."""
    objective, terms = rows.objective, rows.terms
    count, v = rows.logits.shape
    if count == 0:
        return
    kl = objective.kl if rows.ref_logits is not None or rows.ref_logp is not None else None
    exact = kl == "exact"
    shape = launch_shape(v, rows.logits.element_size(), 1 + (rows.ref_logits is not None) + exact)
    with on_device_of(rows.logits):
        one_pass_kernel[(count,)](
            rows.logits,
            rows.ref_logits,
            rows.ref_logp,
            rows.ids,
            terms.advantages,
            terms.weights,
            terms.old_logp,
            terms.correction,
            out.logp,
            out.log_ratio,
            out.kl,
            out.entropy,
            losses,
            v,
            1.0 / rows.temperature,
            1.0 - objective.clip_low,
            1.0 + objective.clip_high,
            objective.beta,
            objective.entropy_bonus,
            KL=KL_CODES[kl],
            PENALTY=objective.beta != 0 and kl is not None,
            BONUS=objective.entropy_bonus != 0,
            SURROGATE=SURROGATE_CODES[objective.surrogate],
            GRADIENT=gradient,
            BLOCK=shape.block,
            EVEN=v % shape.block == 0,
            num_warps=shape.warps,
            **COMPILE_OPTIONS,
        )
