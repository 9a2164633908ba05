"""Streams a rollout: the plan word by word, then the pictures patch by patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from src.policies.base import Decoder, Policy
from src.rollout.decode import stream
from src.rollout.levels import RolloutSettings
from src.rollout.noise import RolloutKey, uniforms
from src.values import IMAGE, PLAN

GREY = 0.85  # of patches that are not painted yet
LOOKS = 16  # per level, by default


@dataclass(frozen=True, slots=True)
class Look:
    """How far N rollouts of a prompt are.

    plans: N texts, as far as they go. tokens: of each picture, of `total`. pixels (N, 3, H, W) in [0, 1], patches that
    are not painted yet grey; None while plans are written.
    """

    plans: tuple[str, ...]
    tokens: int
    total: int
    pixels: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= self.total:
            raise ValueError(f"Look: {self.tokens} of {self.total} tokens")
        if self.pixels is not None and len(self.pixels) != len(self.plans):
            raise ValueError(f"Look: {len(self.pixels)} pictures, {len(self.plans)} plans")

    @property
    def finished(self) -> bool:
        """Whether the pictures are whole."""
        return self.pixels is not None and self.tokens == self.total


@torch.no_grad()
def looks(
    policy: Policy,
    decoder: Decoder,
    prompt: str,
    keys: Sequence[RolloutKey],
    settings: RolloutSettings,
    every: int | None = None,
) -> Iterator[Look]:
    """Looks at one rollout a key, the last one finished: the plans and pixels `roll_out` gives for these keys.

    every: tokens between looks; None: `LOOKS` looks a level.
    """
    plans = [""] * len(keys)
    stride = every or max(1, settings.max_plan_tokens // LOOKS)
    prompts = [prompt] * len(keys)
    noise = uniforms(keys, PLAN, settings.max_plan_tokens)
    ids = torch.empty((len(keys), 0), dtype=torch.int64)
    for ids in stream(decoder, PLAN, policy.plan_context(prompts), noise, settings.plan, end_id=policy.end_id):
        if ids.shape[1] % stride == 0:
            yield Look(tuple(_read(policy, ids)), 0, policy.image_tokens)
    plans = _read(policy, ids)
    yield Look(tuple(plans), 0, policy.image_tokens)
    context = policy.image_context(prompts, plans)
    unconditional = policy.unconditional(context) if settings.image.guided else None
    stride = every or max(1, policy.image_tokens // LOOKS)
    noise = uniforms(keys, IMAGE, policy.image_tokens)
    for ids in stream(decoder, IMAGE, context, noise, settings.image, unconditional):
        if ids.shape[1] % stride == 0 or ids.shape[1] == policy.image_tokens:
            yield Look(tuple(plans), ids.shape[1], policy.image_tokens, partial_pixels(policy, ids))


def partial_pixels(policy: Policy, ids: Tensor) -> Tensor:
    """Pixels of the first t of K image tokens, ids (N, t) in raster order; all other patches are grey.

    The image decoder needs a whole grid, so missing tokens are 0. Its convolutions look at neighbours, so the last
    patches' edges may change with the next ones; with all K tokens the pixels are `policy.paint`'s.
    """
    rows, done = ids.shape
    full = ids.new_zeros((rows, policy.image_tokens))
    full[:, :done] = ids
    pixels = policy.paint(full)
    side = isqrt(policy.image_tokens)
    painted = (torch.arange(side * side, device=pixels.device) < done).view(1, 1, side, side)
    height, width = pixels.shape[-2:]
    mask = painted.repeat_interleave(height // side, 2).repeat_interleave(width // side, 3)
    return torch.where(mask, pixels, GREY)


def _read(policy: Policy, ids: Tensor) -> list[str]:
    """Plans as text, each up to its end."""
    ends = ids.eq(policy.end_id)
    return policy.read_plans(ids, ends.cumsum(1) - ends.long() == 0)
