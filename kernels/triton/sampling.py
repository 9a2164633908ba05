"""Guided sampling in one launch, one program a row: what is drawn equals :mod:`kernels.sampling` to the id.

A row is read once for its largest logit and its sums, each lane with a running maximum of its own as in
:mod:`kernels.triton.device`, but in float64; and a second time up to the token drawn, by sums of whole blocks. With
top-k or top-p the threshold is searched between the two by bisection on the bits of ``d = (top - z) / tau``, which as
integers are in the order of the numbers: at most 63 reads, mostly 10 to 20, since both ends move on to distances
that occur.
"""

from __future__ import annotations

# ruff: noqa: N803, N806 (compile-time constants are capitals, as in Triton's own code)
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_draws, check_sampling
from kernels.sampling import LAST_SHARE, Draws, truncation
from kernels.triton.device import load_block
from kernels.triton.rows import Launch, on_device_of
from kernels.triton.statistics import check_dtypes, contiguous_rows

# Without contraction a logit is mixed with the same roundings as in torch: equal distances are equal bits in both.
# Told no limit of registers, the assembler spills in one case to fit a third program on a multiprocessor.
SAMPLING_OPTIONS = {"enable_fp_fusion": False, "maxnreg": 128}
# The distance of "no logit here": beyond any logit's, finite, and its probability is 0.
BEYOND = tl.constexpr(1e300)
BEYOND_KEY = tl.constexpr(0x7E37E43C8800759C)  # its bits
LAST = tl.constexpr(LAST_SHARE)


def sampling_shape(vocabulary: int) -> Launch:
    """Four float64 lanes a thread at 8 warps; less for short rows."""
    block = min(1024, max(16, triton.next_power_of_2(vocabulary)))
    return Launch(block, min(8, max(1, block // 128)))


@triton.jit
def mixed_of(block_c, block_u, w, GUIDED: tl.constexpr):
    """Guided logits in float64 from those of the two branches."""
    y = block_c.to(tl.float64)
    if GUIDED:
        base = block_u.to(tl.float64)
        y = (y - base) * w + base
    return y


@triton.jit
def mixed_one(c, u, place, w):
    """The guided logit at `place` of a row."""
    block_u = 0.0
    if u is not None:
        block_u = tl.load(u + place).to(tl.float32)
    return mixed_of(tl.load(c + place).to(tl.float32), block_u, w, u is not None)


@triton.jit
def distances(c, u, columns, top, V, w, inverse_temperature, EVEN: tl.constexpr):
    """How far a block's logits are below the row's largest, over the temperature; BEYOND the row's end."""
    y = mixed_of(load_block(c, columns, V, EVEN), load_block(u, columns, V, EVEN), w, u is not None)
    d = (top - y) * inverse_temperature
    if not EVEN:
        d = tl.where(columns < V, d, BEYOND)
    return d


@triton.jit
def survey(c, u, V, w, inverse_temperature, c_inverse, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Read the row once: its largest mixed logit, ``sum exp(-d)`` and ``sum exp(-d) d``; scalars.

    Under guidance also the largest conditional logit and its ``sum exp(-d)``, in float32; else 0.
    """
    GUIDED: tl.constexpr = u is not None
    lanes = tl.arange(0, BLOCK)
    none = tl.zeros([BLOCK], tl.float64)
    # Every lane starts at the row's first logit, with nothing summed.
    top, total, moment = none + mixed_one(c, u, 0, w), none, none
    c_top = tl.zeros([BLOCK], tl.float32) + tl.load(c).to(tl.float32)
    c_total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        block_c, block_u = load_block(c, columns, V, EVEN), load_block(u, columns, V, EVEN)
        y = mixed_of(block_c, block_u, w, GUIDED)
        if not EVEN:
            y = tl.where(columns < V, y, top)
        rise = (y - top) * inverse_temperature
        factor = tl.exp(-tl.abs(rise))
        keep = tl.where(rise > 0, factor, 1.0)  # of the old sums
        term = tl.where(rise > 0, 1.0, factor)  # the new logit's
        if not EVEN:
            term = tl.where(columns < V, term, 0.0)
        moment = keep * (moment + tl.maximum(rise, 0.0) * total) + term * tl.maximum(-rise, 0.0)
        total = keep * total + term
        top = tl.maximum(top, y)
        if GUIDED:
            c_y = block_c
            if not EVEN:
                c_y = tl.where(columns < V, block_c, c_top)
            c_rise = (c_y - c_top) * c_inverse
            c_factor = tl.exp(-tl.abs(c_rise))
            c_term = tl.where(c_rise > 0, 1.0, c_factor)
            if not EVEN:
                c_term = tl.where(columns < V, c_term, 0.0)
            c_total = tl.where(c_rise > 0, c_factor, 1.0) * c_total + c_term
            c_top = tl.maximum(c_top, c_y)
    row_top = tl.max(top, 0)
    below = (row_top - top) * inverse_temperature
    share = tl.exp(-below)
    row_total = tl.sum(share * total, 0)
    row_moment = tl.sum(share * (moment + below * total), 0)
    c_row_top = 0.0
    c_row_total = 0.0
    if GUIDED:
        c_row_top = tl.max(c_top, 0)
        c_row_total = tl.sum(tl.exp((c_top - c_row_top) * c_inverse) * c_total, 0)
    return row_top, row_total, row_moment, c_row_top, c_row_total


@triton.jit
def search(
    c, u, top, wanted, high, V, w, inverse_temperature, MASS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr
):
    """The bits of the least d up to which there are `wanted` tokens or, with MASS, as much of ``sum exp(-d)``.

    high: bits (int64) of a distance up to which there are. Ends with NaN among the logits, too.
    """
    lanes = tl.arange(0, BLOCK)
    low = high * 0
    while low < high:
        middle = low + (high - low) // 2
        amount = tl.zeros([BLOCK], tl.float64)
        last = tl.zeros([BLOCK], tl.int64)
        following = tl.zeros([BLOCK], tl.int64) + BEYOND_KEY
        for start in range(0, V, BLOCK):
            d = distances(c, u, start + lanes, top, V, w, inverse_temperature, EVEN)
            key = d.to(tl.int64, bitcast=True)
            inside = key <= middle
            if MASS:
                amount += tl.where(inside, tl.exp(-d), 0.0)
            else:
                amount += tl.where(inside, 1.0, 0.0)
            last = tl.maximum(last, tl.where(inside, key, 0))
            following = tl.minimum(following, tl.where(inside, BEYOND_KEY, key))
        enough = tl.sum(amount, 0) >= wanted
        high = tl.where(enough, tl.max(last, 0), high)
        low = tl.where(enough, low, tl.min(following, 0))
    return high


@triton.jit
def sums_within(c, u, top, limit, V, w, inverse_temperature, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """``sum exp(-d)`` and ``sum exp(-d) d`` of the tokens with d up to `limit`."""
    lanes = tl.arange(0, BLOCK)
    total, moment = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for start in range(0, V, BLOCK):
        d = distances(c, u, start + lanes, top, V, w, inverse_temperature, EVEN)
        mass = tl.where(d <= limit, tl.exp(-d), 0.0)
        total += mass
        moment += mass * d
    return tl.sum(total, 0), tl.sum(moment, 0)


@triton.jit
def first_beyond(c, u, top, limit, target, V, w, inverse_temperature, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """The first token at which the cumulated ``exp(-d)`` of tokens with d up to `limit` exceeds `target`.

    A target is at most `LAST_SHARE` of the whole, so that sums of another order reach it, too. NaN reaches nothing:
    then some token of the row.
    """
    lanes = tl.arange(0, BLOCK)
    held = tl.zeros([BLOCK], tl.float64)
    reached = target * 0.0
    before = target * 0.0
    start = 0
    place = 0
    while (reached <= target) & (start < V):
        d = distances(c, u, start + lanes, top, V, w, inverse_temperature, EVEN)
        mass = tl.where(d <= limit, tl.exp(-d), 0.0)
        block = tl.sum(mass, 0)
        if block > 0:
            held = mass
            before = reached
            place = start
        reached += block
        start += BLOCK
    beyond = (before + tl.cumsum(held, 0) > target) & (held > 0)
    first = tl.min(tl.where(beyond, lanes, BLOCK), 0)
    last = tl.max(tl.where(held > 0, lanes, 0), 0)
    return place + tl.where(first < BLOCK, first, last)


@triton.jit
def sampling_kernel(
    logits,
    unconditional,
    uniform,
    ids_out,
    logp_out,
    conditional_out,
    entropy_out,
    V,
    c_n,
    u_n,
    uniform_n,
    w: tl.float64,
    inverse_temperature: tl.float64,
    c_inverse,
    count: tl.float64,
    share: tl.float64,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c = logits + row * c_n
    u = None
    if unconditional is not None:
        u = unconditional + row * u_n
    top, full_total, full_moment, c_top, c_total = survey(c, u, V, w, inverse_temperature, c_inverse, BLOCK, EVEN)

    total, moment = full_total, full_moment
    key = tl.full([], BEYOND_KEY, tl.int64)
    if TOP_K:
        key = search(c, u, top, count, key, V, w, inverse_temperature, False, BLOCK, EVEN)
        limit = key.to(tl.float64, bitcast=True)
        total, moment = sums_within(c, u, top, limit, V, w, inverse_temperature, BLOCK, EVEN)
    if TOP_P:
        key = search(c, u, top, share * total, key, V, w, inverse_temperature, True, BLOCK, EVEN)
        limit = key.to(tl.float64, bitcast=True)
        total, moment = sums_within(c, u, top, limit, V, w, inverse_temperature, BLOCK, EVEN)
    limit = key.to(tl.float64, bitcast=True)

    target = tl.minimum(tl.load(uniform + row * uniform_n), LAST) * total
    token = first_beyond(c, u, top, limit, target, V, w, inverse_temperature, BLOCK, EVEN)
    d = (top - mixed_one(c, u, token, w)) * inverse_temperature
    if FULL:
        total, moment = full_total, full_moment
    # A NaN beyond the threshold is in the sums of the whole row alone.
    logp = tl.where(full_total == full_total, -d - tl.log(total), float("nan"))
    entropy = tl.where(full_total == full_total, tl.log(total) + moment / total, float("nan"))
    conditional = -d - tl.log(full_total)
    if unconditional is not None:
        c_one = tl.load(c + token).to(tl.float32)
        conditional = ((c_one - c_top) * c_inverse - tl.log(c_total)).to(tl.float64)
    tl.store(ids_out + row, token.to(tl.int64))
    tl.store(logp_out + row, logp.to(tl.float32))
    tl.store(conditional_out + row, conditional.to(tl.float32))
    tl.store(entropy_out + row, entropy.to(tl.float32))


@torch.no_grad()
def sample_tokens(
    logits: Tensor,
    uniform: Tensor,
    *,
    unconditional: Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    logp_of: str = "sampled",
    validate: bool = True,
    out: Draws | None = None,
) -> Draws:
    """As :func:`kernels.sampling.sample_tokens`, the same ids; logits bf16, fp16 or fp32.

    Rows may lie anywhere, but along V logits are contiguous, or else copied. With `validate` off nothing is read back
    to the host, and with `out` a captured CUDA graph writes to the same tensors at every replay.
    """
    check_sampling(
        logits,
        uniform,
        unconditional=unconditional,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        logp_of=logp_of,
        validate=validate,
    )
    check_dtypes(logits=logits, unconditional=unconditional)
    rows, vocabulary = logits.shape
    if out is None:
        kept = [torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3)]
        out = Draws(torch.empty(rows, dtype=torch.int64, device=logits.device), *kept)
    check_draws(out, logits)
    if rows == 0:
        return out
    logits, uniform = contiguous_rows(logits), uniform.to(logits.device)
    base = contiguous_rows(unconditional) if guidance_scale != 1.0 and unconditional is not None else None
    count, share = truncation(top_k, top_p, vocabulary)
    shape = sampling_shape(vocabulary)
    with on_device_of(logits):
        sampling_kernel[(rows,)](
            logits,
            base,
            uniform,
            *out,
            vocabulary,
            logits.stride(0),
            0 if base is None else base.stride(0),
            uniform.stride(0),
            float(guidance_scale),
            1.0 / temperature,
            1.0 / temperature,
            float(count or 0),
            float(share or 0.0),
            TOP_K=count is not None,
            TOP_P=share is not None,
            FULL=logp_of == "full",
            BLOCK=shape.block,
            EVEN=vocabulary % shape.block == 0,
            num_warps=shape.warps,
            **SAMPLING_OPTIONS,
        )
    return out
