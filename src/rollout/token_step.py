"""The token step of a level: everything it reads and writes stands in tensors at fixed addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import guide_features, operations
from src.policies.base import CapturableDecoder, Decoder
from src.rollout.graph import Capture, Step
from src.rollout.sampling import draw
from src.values import LinearHead, Sampling


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step depends on besides the numbers in its tensors; another one needs another capture.

    rows: rollouts, without the guidance branch's rows; end_id: the token that ends a row, or None.
    """

    level: str
    rows: int
    steps: int
    sampling: Sampling
    end_id: int | None


class TokenStep:
    """One token a row, again and again: advance the decoder by the last token, draw the next, write the tables.

    Tables (N, T): `noise` is read, `ids`, `logp`, `conditional_logp` and, under guidance, `unconditional_features`
    (N, T, F) are written at `place`. In the decoder the guidance branch's rows stand behind the rollouts'.
    """

    def __init__(self, decoder: Decoder, shape: StepShape, state: Any, features: Tensor) -> None:
        rows, steps, device = shape.rows, shape.steps, features.device
        self.shape = shape
        self._decoder = decoder
        self._state = state
        self._head: LinearHead = decoder.head(shape.level)
        kernels = "torch"
        if isinstance(decoder, CapturableDecoder) and decoder.engine.fused_sampling:
            kernels = decoder.engine.kernels
        self._sample = operations(kernels, device).sample_tokens
        self._noise = torch.zeros((rows, steps), dtype=torch.float64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._token = torch.zeros(len(features), dtype=torch.int64, device=device)
        self._running = torch.ones(rows, dtype=torch.bool, device=device)
        self.ids = torch.zeros((rows, steps), dtype=torch.int64, device=device)
        self.logp = torch.zeros((rows, steps), device=device)
        self.conditional_logp = torch.zeros((rows, steps), device=device)
        self.unconditional_features: Tensor | None = None
        if shape.sampling.guided:
            self.unconditional_features = features.new_zeros((rows, steps, features.shape[1]))
        self._replay: Step | None = None

    def begin(self, state: Any, features: Tensor, noise: Tensor) -> None:
        """Draw the first token from the contexts' features ((2)N, F); noise (N, T) is for all of them."""
        self._state = state
        self._noise.copy_(noise)
        self._place.zero_()
        self._running.fill_(True)
        if self.shape.end_id is not None:
            self.ids.fill_(self.shape.end_id)
        self._draw(features)

    def step(self) -> None:
        """One token more, eagerly."""
        self._draw(self._decoder.advance(self._state, self._token))

    def replay(self, capture: Capture) -> Step:
        """What makes one token more, captured the first time it is asked for."""
        if self._replay is None:
            assert isinstance(self._decoder, CapturableDecoder)
            moving = [self._place, self._token, self._running, *self._decoder.moving(self._state)]
            before = [tensor.clone() for tensor in moving]

            def reset() -> None:
                for tensor, value in zip(moving, before, strict=True):
                    tensor.copy_(value)

            self._replay = capture(self.step, reset)
        return self._replay

    def ended(self) -> bool:
        """Whether all rows have ended; waits for the device."""
        return not bool(self._running.any())

    def _draw(self, features: Tensor) -> None:
        rows, end_id, place = self.shape.rows, self.shape.end_id, self._place
        sampling, guided = self.shape.sampling, self.unconditional_features is not None
        if guided:
            # Mixed where training mixes. The conditional branch goes along: unguided training needs its log-probs.
            mixed = guide_features(features[:rows], features[rows:], sampling.guidance_scale)
            logits = self._head(torch.cat([mixed, features[:rows]]))
        else:
            logits = self._head(features)
        uniform = self._noise.index_select(1, place).squeeze(1)
        chosen = draw(logits[:rows], logits[rows:] if guided else None, uniform, sampling, self._sample)
        ids = chosen.ids
        if end_id is not None:
            ids = ids.masked_fill(~self._running, end_id)
            self._running.logical_and_(ids != end_id)
        self.ids.index_copy_(1, place, ids[:, None])
        self.logp.index_copy_(1, place, chosen.logp[:, None])
        self.conditional_logp.index_copy_(1, place, chosen.conditional_logp[:, None])
        self._token[:rows].copy_(ids)
        if self.unconditional_features is not None:
            self.unconditional_features.index_copy_(1, place, features[rows:, None])
            self._token[rows:].copy_(ids)
        place.add_(1)
