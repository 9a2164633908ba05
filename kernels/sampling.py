"""Guided sampling in plain torch: from logits and a uniform to a token, its log-probs and the entropy.

With ``c`` the conditional logits, ``u`` the unconditional ones, ``w`` the guidance scale and ``tau`` the temperature
the distribution is ``softmax((u + w * (c - u)) / tau)``; a token is the first, in the vocabulary's order, at which the
cumulated probability exceeds the uniform. Mixing, exponentials and the cumulated sum are in float64, so that another
implementation, another device or another way of cutting rows moves a boundary between tokens by less than 1e-13 of
the whole and gives the same ids; uniforms beyond `LAST_SHARE` count as that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.checks import check_draws, check_sampling

# A nucleus has reached top_p when this share of top_p is missing: a tie is then a tie whatever the rounding.
SLACK = 1e-12
# Uniforms are taken as at most this. Sums of another order differ by up to 1e-13 of the whole, so that beyond it the
# rounding would choose among the tokens at the end of the vocabulary, however improbable they are.
LAST_SHARE = 1.0 - 2.0**-40


class Draws(NamedTuple):
    """One token a row: ids (N,) int64, the others (N,) float32.

    logp: log-prob of the token, <= 0, of the distribution that `logp_of` names. conditional_logp: of
    ``softmax(c / temperature)``, never guided nor truncated. entropy: in nats, >= 0, of the same distribution as logp.
    """

    ids: Tensor
    logp: Tensor
    conditional_logp: Tensor
    entropy: Tensor


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
    """Draw one token a row by inverse CDF; a token of probability zero is never drawn.

    logits (N, V) floating, finite; uniform (N,) float64 in [0, 1); unconditional (N, V), needed unless
    `guidance_scale` is 1 and then unused. A scale of 0 draws from `unconditional` to the bit: logits that are guided
    already go there, with those of the conditional branch as `logits`. A row's result depends on that row alone; where
    a logit is NaN, so is the row's log-prob, and its id is somewhere in [0, V).

    `top_k` keeps the k most probable tokens and all that tie with the k-th. `top_p`, in (0, 1], keeps the nucleus
    (arXiv 1904.09751): the most probable tokens down to the one with which their mass reaches p of the whole, and all
    that tie with it; at least one. Together, the nucleus is that of the k tokens, renormalised. Ties are equal
    mixed logits; tokens alike are so kept or dropped together, wherever they stand in the vocabulary.

    `logp_of`: "sampled", the truncated, renormalised distribution that is drawn from, or "full", that of the whole
    vocabulary, which is what training computes (:func:`kernels.token_statistics`). Without truncation both are one.
    `validate` off leaves out the look at the uniforms' values, for which a GPU has to be waited for.
    `out`: where to write, tensors as in :class:`Draws`, contiguous; returned.
    Raises ValueError for shapes and dtypes that do not match and options out of range.
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
    guided = guidance_scale != 1.0
    mixed = logits.double()
    if guided and unconditional is not None:
        base = unconditional.double()
        mixed = (mixed - base).mul_(guidance_scale).add_(base)  # one rounding each, as in the kernel
    z = mixed - mixed.amax(-1, keepdim=True)
    if temperature != 1.0:
        z.mul_(1.0 / temperature)
    mass = z.exp()
    kept, limit = mass, _lowest(z, top_k, top_p)
    if limit is not None:
        kept = mass.masked_fill(z < limit, 0.0)
    ids, total = _inverse_cdf(kept, uniform.to(logits.device).clamp_max(LAST_SHARE))
    summed = kept
    if limit is not None and logp_of == "full":
        summed, total = mass, mass.sum(-1)
    log_total, chosen = total.log(), z.gather(1, ids).squeeze(1)
    logp = conditional = (chosen - log_total).float()
    entropy = (log_total - torch.linalg.vecdot(summed, z) / total).float()
    if guided:
        conditional = _conditional_logp(logits, ids, temperature)
    elif limit is not None and logp_of == "sampled":
        conditional = (chosen - mass.sum(-1).log()).float()
    made = Draws(ids.squeeze(1), logp, conditional, entropy)
    if out is None:
        return made
    check_draws(out, logits)
    for place, value in zip(out, made, strict=True):
        place.copy_(value)
    return out


def _lowest(z: Tensor, top_k: int | None, top_p: float | None) -> Tensor | None:
    """The z of the least probable token kept, (N, 1); None where all are. z: (N, V), 0 at the largest."""
    top_k, share = truncation(top_k, top_p, z.shape[-1])
    if top_k is None and share is None:
        return None
    ordered = z.sort(-1, descending=True).values
    lowest = ordered[:, -1:] if top_k is None else ordered[:, top_k - 1 : top_k]
    if share is None:
        return lowest
    reached = ordered.exp().masked_fill_(ordered < lowest, 0.0).cumsum(-1)
    place = (reached < share * reached[:, -1:]).sum(-1, keepdim=True)
    return ordered.gather(1, place)


def truncation(top_k: int | None, top_p: float | None, vocabulary: int) -> tuple[int | None, float | None]:
    """(k, share of the mass that a nucleus has to reach), None for what leaves everything in."""
    k = None if top_k is None or top_k >= vocabulary else top_k
    return k, None if top_p is None or top_p == 1.0 else top_p * (1.0 - SLACK)


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first places (N, 1) at which the cumulated mass (N, V) exceeds its share `uniform` (N,); the totals (N,)."""
    reached = mass.cumsum(-1)
    if mass.is_cpu:  # one addition after the other: it never steps where nothing is added
        total = reached[:, -1]
        return torch.searchsorted(reached, (uniform * total)[:, None], right=True).clamp_max_(mass.shape[1] - 1), total
    return first_beyond(reached, mass, uniform)


def first_beyond(reached: Tensor, mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The same from sums of a parallel scan, which may rise or fall by a rounding where nothing was added."""
    reached = reached.masked_fill(mass == 0, 0.0)
    total = reached.amax(-1)
    beyond = reached > (uniform * total)[:, None]
    return beyond.to(torch.uint8).argmax(-1, keepdim=True), total


def _conditional_logp(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Log-prob (N,) of tokens ids (N, 1) in ``softmax(c / temperature)``, summed in float32."""
    c = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        c = c * (1.0 / temperature)
    return c.log_softmax(-1).gather(1, ids).squeeze(1).float()
