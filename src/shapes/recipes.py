"""The numbers of the recipe that makes the embedded checkpoint; plain values, quick to import."""

from __future__ import annotations

from dataclasses import dataclass

MISREADINGS = ("systematic", "random")


@dataclass(frozen=True, slots=True)
class VQRecipe:
    """Training of the VQ model: steps of its two halves; learning rates fall to zero by a cosine."""

    decoder_steps: int = 700
    encoder_steps: int = 600
    batch: int = 32
    lr: float = 2e-3


@dataclass(frozen=True, slots=True)
class WarmStartRecipe:
    """The supervised stage: its length, and how much of its targets is planted.

    misread: probability that a target is a wrong reading. A little above one half, so that sharper sampling follows
    the misreading rather than the words. misreading: what a wrong reading is, "systematic" (the one fixed misreading
    of the prompt's form) or "random" (any other prompt's picture: noise, which sharper sampling does take away).
    misdraw: probability that a picture follows `MISDRAWN`. drop_context: share of pictures learned without context,
    for guidance.
    """

    steps: int = 1500
    plan_batch: int = 64
    picture_batch: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.05
    misread: float = 0.55
    misreading: str = "systematic"
    misdraw: float = 0.5
    drop_context: float = 0.1
