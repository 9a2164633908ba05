"""Plans that grow too long: what it costs not to end, and whether they teach at all."""

from __future__ import annotations

from torch import Tensor


def unfinished_penalty(finished: Tensor, penalty: float) -> Tensor:
    """(N,) float32: `penalty` (>= 0) taken off for each plan that did not end; finished (N,) bool."""
    if penalty < 0:
        raise ValueError(f"algorithm.unfinished_plan_penalty={penalty}: expected 0 or more; it is subtracted")
    return finished.logical_not().float() * -penalty


def overlong_penalty(lengths: Tensor, max_tokens: int, margin: int) -> Tensor:
    """(N,) float32 in [-1, 0]: DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13).

    lengths (N,) in tokens. 0 up to ``max_tokens - margin``, then falling linearly to -1 at max_tokens, and
    -1 beyond. margin in [1, max_tokens].
    """
    if not 1 <= margin <= max_tokens:
        raise ValueError(f"algorithm.overlong_margin={margin}: expected 1 to rollout.max_plan_tokens={max_tokens}")
    return ((max_tokens - margin - lengths.float()) / margin).clamp(-1, 0)


def mask_unfinished(mask: Tensor, finished: Tensor) -> Tensor:
    """The mask (N, T) with the plans that did not end left out (DAPO's overlong filtering, section 3.4)."""
    return mask & finished.unsqueeze(1)
