"""The arithmetic of one row of logits, shared by all kernels: derivations in kernels/README.md.

A row of the policy and one of the reference pass by in blocks. Every lane (place in a block) keeps a running
maximum and sums of its own, so that a block costs no exchange between threads; lanes are merged once, at the
row's end. With ``d = z - m`` the distance of a logit from its lane's maximum, one exponential ``exp(-|d|)`` is
the factor of whichever is smaller, the old sums or the new term.

The log ratio and the exact KL are functions of ``x = (z' - z) - a``, ``a`` being ``z' - z`` of the token
itself, and are summed as ``k3(x) = exp(x) - 1 - x``: no term cancels, so a tiny KL keeps its digits.
"""

from __future__ import annotations

# ruff: noqa: N803, N806 (compile-time constants are capitals, as in Triton's own code)
import triton
import triton.language as tl

# Stands for "no logit here": finite, so that differences of it are never NaN, yet exp(it - anything) is 0.
NOTHING = tl.constexpr(-1e30)
# Up to here k3 is summed as a series: beyond, exp(x) - 1 - x loses no more than three bits.
NEAR = tl.constexpr(0.5)


@triton.jit
def k3_near(x):
    """exp(x) - 1 - x for |x| <= 0.5 by its series; the first term left out is 4e-8 of the sum."""
    series = 1.0 / 40320
    series = series * x + 1.0 / 5040
    series = series * x + 1.0 / 720
    series = series * x + 1.0 / 120
    series = series * x + 1.0 / 24
    series = series * x + 1.0 / 6
    series = series * x + 0.5
    return x * x * series


@triton.jit
def k3(x):
    """exp(x) - 1 - x, never negative."""
    return tl.where(tl.abs(x) <= NEAR, k3_near(x), tl.exp(x) - 1.0 - x)


@triton.jit
def expm1(x):
    """exp(x) - 1 without the cancellation at small x."""
    return tl.where(tl.abs(x) <= NEAR, x + k3_near(x), tl.exp(x) - 1.0)


@triton.jit
def log1p_excess(y):
    """y - log(1 + y), never negative, for y in [-0.4, 0.65]: with s = y/(2+y) it is y*s - 2*s*(s^2/3 + s^4/5 + ...)."""
    s = y / (2.0 + y)
    q = s * s
    series = 1.0 / 17
    series = series * q + 1.0 / 15
    series = series * q + 1.0 / 13
    series = series * q + 1.0 / 11
    series = series * q + 1.0 / 9
    series = series * q + 1.0 / 7
    series = series * q + 1.0 / 5
    series = series * q + 1.0 / 3
    return y * s - 2.0 * s * q * series


@triton.jit
def load_one(c, u, place, w, inverse_temperature):
    """The logit at `place` of a row: guided where there is an unconditional one, over the temperature."""
    z = tl.load(c + place).to(tl.float32)
    if u is not None:
        unconditional = tl.load(u + place).to(tl.float32)
        z = unconditional + w * (z - unconditional)
    return z * inverse_temperature


@triton.jit
def load_block(row, columns, V, EVEN: tl.constexpr):
    """A block of a row as float32, 0 beyond the row's end or without a row."""
    block = 0.0
    if row is not None:
        if EVEN:
            block = tl.load(row + columns).to(tl.float32)
        else:
            block = tl.load(row + columns, mask=columns < V, other=0.0).to(tl.float32)
    return block


@triton.jit
def logits_of(c, u, w, inverse_temperature, columns, V, GUIDED: tl.constexpr, EVEN: tl.constexpr):
    """A block's logits from its float32 inputs, NOTHING beyond the row's end."""
    z = c
    if GUIDED:
        z = u + w * (c - u)
    z = z * inverse_temperature
    if not EVEN:
        z = tl.where(columns < V, z, NOTHING)
    return z


@triton.jit
def difference(c, u, ref_c, ref_u, w, inverse_temperature, GUIDED: tl.constexpr):
    """z' - z from the inputs' own differences, which are small where the mixed logits' rounding is not."""
    x = ref_c - c
    if GUIDED:
        x = (ref_u - u) + w * (x - (ref_u - u))
    return x * inverse_temperature


@triton.jit
def sweep(
    c,
    u,
    ref_c,
    ref_u,
    target,
    V,
    w,
    inverse_temperature,
    EXACT: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Read the rows once: (logp, z of the token, its z' - z, log ratio, exact KL, entropy), scalars.

    c, u, ref_c, ref_u point at the rows' first logits; all but c may be None. target: the token's id, in
    [0, V). What was not asked for is 0.
    """
    GUIDED: tl.constexpr = u is not None
    # Mixing rounds the logits by more than a small log ratio may be off, and leaves time for more arithmetic.
    CAREFUL: tl.constexpr = EXACT or (GUIDED and (ref_c is not None))
    lanes = tl.arange(0, BLOCK)
    none = tl.zeros([BLOCK], tl.float32)
    top, total, moment = none + NOTHING, none, none
    ref_top, ref_total, ref_far = none + NOTHING, none, none
    tilt, curve = none, none
    picked = load_one(c, u, target, w, inverse_temperature)
    ref_picked = 0.0
    shift = 0.0
    if ref_c is not None:
        ref_picked = load_one(ref_c, ref_u, target, w, inverse_temperature)
        shift = ref_picked - picked
        if GUIDED:
            at_c, at_u = tl.load(c + target).to(tl.float32), tl.load(u + target).to(tl.float32)
            ref_at_c, ref_at_u = tl.load(ref_c + target).to(tl.float32), tl.load(ref_u + target).to(tl.float32)
            shift = difference(at_c, at_u, ref_at_c, ref_at_u, w, inverse_temperature, GUIDED)

    for start in range(0, V, BLOCK):
        columns = start + lanes
        block_c, block_u = load_block(c, columns, V, EVEN), load_block(u, columns, V, EVEN)
        z = logits_of(block_c, block_u, w, inverse_temperature, columns, V, GUIDED, EVEN)
        distance = z - top
        factor = tl.exp(-tl.abs(distance))
        keep = tl.where(distance > 0, factor, 1.0)  # of the old sums
        term = tl.where(distance > 0, 1.0, factor)  # the new logit's exp(z - top)
        if ENTROPY:
            moment = keep * (moment - tl.maximum(distance, 0.0) * total) + term * tl.minimum(distance, 0.0)
        total = keep * total + term
        top = tl.maximum(top, z)
        if ref_c is not None:
            ref_block_c, ref_block_u = load_block(ref_c, columns, V, EVEN), load_block(ref_u, columns, V, EVEN)
            ref_z = logits_of(ref_block_c, ref_block_u, w, inverse_temperature, columns, V, GUIDED, EVEN)
            ref_distance = ref_z - ref_top
            ref_factor = tl.exp(-tl.abs(ref_distance))
            ref_keep = tl.where(ref_distance > 0, ref_factor, 1.0)
            ref_term = tl.where(ref_distance > 0, 1.0, ref_factor)
            ref_total = ref_keep * ref_total + ref_term
            ref_top = tl.maximum(ref_top, ref_z)
            if CAREFUL:
                x = difference(block_c, block_u, ref_block_c, ref_block_u, w, inverse_temperature, GUIDED) - shift
                near = tl.abs(x) <= NEAR
                tilt = keep * tilt + term * x
                curve = keep * curve + term * tl.where(near, k3_near(x), -1.0 - x)
                ref_far = ref_keep * ref_far + tl.where(near, 0.0, ref_term)

    row_top = tl.max(top, 0)
    share = tl.exp(top - row_top)
    row_total = tl.sum(share * total, 0)
    log_total = tl.log(row_total)
    logp = tl.minimum((picked - row_top) - log_total, 0.0)
    entropy = 0.0
    if ENTROPY:
        entropy = tl.maximum(log_total - tl.sum(share * (moment + (top - row_top) * total), 0) / row_total, 0.0)
    log_ratio = 0.0
    kl = 0.0
    if ref_c is not None:
        ref_row_top = tl.max(ref_top, 0)
        ref_share = tl.exp(ref_top - ref_row_top)
        ref_row_total = tl.sum(ref_share * ref_total, 0)
        # log(ref_row_total / row_total), to all digits where the two are close, as they mostly are.
        excess = (ref_row_total - row_total) / row_total
        close = (excess >= -0.4) & (excess <= 0.65)
        bounded = tl.where(close, excess, 0.0)
        gain = tl.where(close, bounded - log1p_excess(bounded), tl.log(ref_row_total) - log_total)
        log_ratio = (ref_picked - picked) - ((ref_row_top - row_top) + gain)
        if CAREFUL:
            # log_ratio = -log E[exp(x)] under the policy, KL = log E[exp(x)] - E[x].
            slope = tl.sum(share * tilt, 0) / row_total
            near_row = (log_ratio <= 3.0) & (log_ratio >= -20.0)
            scale = tl.exp(tl.where(near_row, -log_ratio, 0.0)) / ref_row_total
            bend = tl.sum(share * curve, 0) / row_total + tl.sum(ref_share * ref_far, 0) * scale  # E[k3(x)]
            y = tl.where(near_row, slope + bend, 0.0)  # E[exp(x)] - 1
            small = (y >= -0.4) & (y <= 0.65)
            surplus = log1p_excess(tl.where(small, y, 0.0))
            careful = tl.where(small, surplus - y, -tl.log(tl.maximum(1.0 + y, 1e-3)))
            log_ratio = tl.where(near_row, careful, log_ratio)
            if EXACT:
                kl = tl.maximum(tl.where(near_row & small, bend - surplus, -log_ratio - slope), 0.0)
    return logp, picked, shift, log_ratio, kl, entropy


@triton.jit
def estimate(log_ratio, KL: tl.constexpr):
    """The estimator k1, k2 or k3 of KL(policy || reference)."""
    value = -log_ratio
    if KL == 2:
        value = 0.5 * log_ratio * log_ratio
    if KL == 3:
        value = k3(log_ratio)
    return value


@triton.jit
def estimate_slope(log_ratio, KL: tl.constexpr):
    """The estimator's derivative with respect to logp."""
    slope = log_ratio * 0.0 + 1.0
    if KL == 2:
        slope = -log_ratio
    if KL == 3:
        slope = -expm1(log_ratio)
    return slope


@triton.jit
def write_gradient(
    c,
    u,
    ref_c,
    ref_u,
    target,
    V,
    w,
    inverse_temperature,
    grad_c,
    grad_u,
    logp,
    picked,
    shift,
    log_ratio,
    kl,
    entropy,
    to_logp,
    to_kl,
    to_entropy,
    EXACT: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Read the rows and write the gradient of ``to_logp*logp + to_kl*exact KL + to_entropy*entropy``.

    grad_c may be c and grad_u may be u: a thread writes only what it has read itself.
    """
    GUIDED: tl.constexpr = u is not None
    lanes = tl.arange(0, BLOCK)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        block_c, block_u = load_block(c, columns, V, EVEN), load_block(u, columns, V, EVEN)
        z = logits_of(block_c, block_u, w, inverse_temperature, columns, V, GUIDED, EVEN)
        log_prob = (z - picked) + logp
        pull = tl.zeros([BLOCK], tl.float32) + to_logp
        if ENTROPY:
            pull += to_entropy * (log_prob + entropy)
        if EXACT:
            ref_block_c, ref_block_u = load_block(ref_c, columns, V, EVEN), load_block(ref_u, columns, V, EVEN)
            x = difference(block_c, block_u, ref_block_c, ref_block_u, w, inverse_temperature, GUIDED) - shift
            pull += to_kl * (x + log_ratio + kl)
        grad = -tl.exp(log_prob) * pull
        grad = tl.where(columns == target, grad + to_logp, grad) * inverse_temperature
        inside = columns < V
        to_c = grad
        if u is not None:
            to_c = grad * w
        if EVEN:
            tl.store(grad_c + columns, to_c.to(grad_c.dtype.element_ty))
        else:
            tl.store(grad_c + columns, to_c.to(grad_c.dtype.element_ty), mask=inside)
        if grad_u is not None:
            tl.store(grad_u + columns, (grad * (1.0 - w)).to(grad_u.dtype.element_ty), mask=inside)
