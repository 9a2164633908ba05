"""The decode loop both levels share: rows split so that they fit, a token step eager or captured, an early exit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from src.policies.base import CapturableDecoder, Decoder
from src.rollout.graph import Capture, capture_for
from src.rollout.rows import join_levels, row_limit, spans
from src.rollout.token_step import StepShape, TokenStep
from src.values import Sampling, TokenContext, TokenLevel

# How often to ask the device whether all rows have ended: each time it has to be waited for, except on a CPU.
LOOK_EVERY = {"cpu": 1}
LOOK_EVERY_ELSEWHERE = 16
# Captured steps a decoder keeps (two levels, in training, in evaluation, and the last part of a split each).
KEPT_CAPTURES = 8


@torch.no_grad()
def decode(
    decoder: Decoder,
    level: str,
    context: TokenContext,
    noise: Tensor,
    sampling: Sampling,
    unconditional: TokenContext | None = None,
    end_id: int | None = None,
    max_rows: int | None = None,
) -> TokenLevel:
    """Sample up to T = noise.shape[1] tokens a row.

    Args:
        context: (N, C), what is continued.
        noise: uniforms (N, T) float64.
        unconditional: context of the guidance branch, needed if `sampling` is guided.
        end_id: the token that ends a row (counted in the mask); None: every row gets T tokens.
        max_rows: rows decoded at once, which changes their rounding alone (see `RolloutSettings`); None: what the
            decoder has memory for.

    Returns:
        The level; where rows end early it is cut to the longest row. Tokens behind a row's end are `end_id`.
    """
    branch = _branch(level, sampling, unconditional)
    noise = noise.to(context.ids.device)
    rows, steps = noise.shape
    limit = row_limit(decoder, level, max_rows, context.ids.shape[1] + steps, 1 if branch is None else 2)
    if rows <= limit:
        return _decode_rows(decoder, level, context, noise, sampling, branch, end_id)
    parts = [
        _decode_rows(
            decoder,
            level,
            context.rows(span),
            noise[span],
            sampling,
            None if branch is None else branch.rows(span),
            end_id,
        )
        for span in spans(rows, limit)
    ]
    return join_levels(parts, context, branch, fill_id=end_id or 0)


@torch.no_grad()
def stream(
    decoder: Decoder,
    level: str,
    context: TokenContext,
    noise: Tensor,
    sampling: Sampling,
    unconditional: TokenContext | None = None,
    end_id: int | None = None,
) -> Iterator[Tensor]:
    """`decode` as it goes on: the ids (N, t) int64 after each token, all rows at once.

    What is yielded is a view of the table that the next token is written into, and of the last time what `decode`
    returns; until the iterator has ended, nothing else may be decoded with `decoder`.
    """
    step, capture, state = _started(
        decoder, level, context, noise.to(context.ids.device), sampling, _branch(level, sampling, unconditional), end_id
    )
    try:
        for done in _tokens(step, capture, LOOK_EVERY.get(step.ids.device.type, LOOK_EVERY_ELSEWHERE)):
            yield step.ids[:, :done]
    finally:
        if isinstance(decoder, CapturableDecoder):
            decoder.finish(state)


def _branch(level: str, sampling: Sampling, unconditional: TokenContext | None) -> TokenContext | None:
    """The context of the guidance branch, if there is to be one."""
    if sampling.guided and unconditional is None:
        raise ValueError(f"{level}: guidance_scale={sampling.guidance_scale} needs an unconditional context")
    return unconditional if sampling.guided else None


def _decode_rows(
    decoder: Decoder,
    level: str,
    context: TokenContext,
    noise: Tensor,
    sampling: Sampling,
    unconditional: TokenContext | None,
    end_id: int | None,
) -> TokenLevel:
    """`decode` of rows that fit."""
    step, capture, state = _started(decoder, level, context, noise, sampling, unconditional, end_id)
    for _ in _tokens(step, capture, LOOK_EVERY.get(step.ids.device.type, LOOK_EVERY_ELSEWHERE)):
        pass
    level_made = _level(step, context, unconditional, copy=capture is not None)
    if isinstance(decoder, CapturableDecoder):
        decoder.finish(state)
    return level_made


def _started(
    decoder: Decoder,
    level: str,
    context: TokenContext,
    noise: Tensor,
    sampling: Sampling,
    unconditional: TokenContext | None,
    end_id: int | None,
) -> tuple[TokenStep, Capture | None, Any]:
    """The step with its first token drawn, how it is captured, and the decoder's state."""
    rows, steps = noise.shape
    state, features = decoder.start(level, _stacked(context, unconditional), steps)
    shape = StepShape(level, rows, steps, sampling, end_id)
    capture = None
    if isinstance(decoder, CapturableDecoder):
        capture = capture_for(decoder.engine, features.device)
    step = TokenStep(decoder, shape, state, features) if capture is None else _kept(decoder, shape, state, features)
    step.begin(state, features, noise)
    return step, capture, state


def _kept(decoder: Any, shape: StepShape, state: Any, features: Tensor) -> TokenStep:
    """The step that was captured for this shape, or a fresh one; the oldest makes room."""
    step: TokenStep = decoder.captured.pop(shape, None) or TokenStep(decoder, shape, state, features)
    decoder.captured[shape] = step
    while len(decoder.captured) > KEPT_CAPTURES:
        del decoder.captured[next(iter(decoder.captured))]
    return step


def _tokens(step: TokenStep, capture: Capture | None, look_every: int) -> Iterator[int]:
    """All tokens after the first, until every row has ended; yields how many there are, from 1 on."""
    yield 1
    for done in range(1, step.shape.steps):
        if step.shape.end_id is not None and done % look_every == 0 and step.ended():
            return
        if capture is None:
            step.step()
        else:
            step.replay(capture)()
        yield done + 1


def _level(step: TokenStep, context: TokenContext, unconditional: TokenContext | None, copy: bool) -> TokenLevel:
    """What stands in the tables; copy: they are going to be written again."""
    ids, end_id = step.ids, step.shape.end_id
    if end_id is None:
        counts, length = torch.ones_like(ids, dtype=torch.bool), ids.shape[1]
    else:
        ends = ids.eq(end_id)
        counts = ends.cumsum(1) - ends.long() == 0
        length = int(counts.sum(1).max())
        counts = counts[:, :length]

    def kept(table: Tensor) -> Tensor:
        return table[:, :length].clone() if copy else table[:, :length]

    return TokenLevel(
        context=context,
        ids=kept(ids),
        mask=counts,
        rollout_logp=step.logp[:, :length].masked_fill(~counts, 0.0),
        conditional_logp=step.conditional_logp[:, :length].masked_fill(~counts, 0.0),
        sampling=step.shape.sampling,
        unconditional=unconditional,
        unconditional_features=None if step.unconditional_features is None else kept(step.unconditional_features),
    )


def _stacked(context: TokenContext, unconditional: TokenContext | None) -> TokenContext:
    """The rollouts' contexts, and behind them those of the guidance branch."""
    if unconditional is None:
        return context
    return TokenContext(
        torch.cat([context.ids, unconditional.ids]),
        torch.cat([context.mask, unconditional.mask]),
    )
