"""The numbers of the recipes that make a world's checkpoint; plain values, quick to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MISREADINGS = ("systematic", "random")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes of the Janus: of its language model, of the VQ model's codes and of its first convolutions."""

    hidden: int = 128
    layers: int = 3
    head_width: int = 32
    code_width: int = 16
    channels: int = 32

    def __post_init__(self) -> None:
        if self.hidden % self.head_width:
            raise ValueError(f"hidden {self.hidden}: not a multiple of the attention heads' width, {self.head_width}")
        if self.channels % 32:
            raise ValueError(f"channels {self.channels}: the VQ model's group norms need a multiple of 32")
        if not 0 < self.code_width <= 48:
            raise ValueError(f"code width {self.code_width}: a patch has 48 numbers to make codes of")

    @property
    def heads(self) -> int:
        return self.hidden // self.head_width

    @property
    def intermediate(self) -> int:
        """Width inside a feed-forward layer, 2.75 times the layer's own."""
        return self.hidden * 11 // 4


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
    for guidance. initial_std: standard deviation of fresh matrices. transformers' 0.02 suits wide models; at a width
    of 128 attention starts flat with it, and learning to bind a colour to its shape takes about twice as many steps.
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
    initial_std: float = 0.07


@dataclass(frozen=True, slots=True)
class Recipe:
    """All numbers of a world's checkpoint."""

    size: ModelSize
    vq: VQRecipe
    warm_start: WarmStartRecipe


#: By the world's name. The small one is tuned and shipped. The large one's learning rate and initial deviation are the
#: small one's scaled to its width; it makes a model of about 30 M parameters and wants a card.
RECIPES: Mapping[str, Recipe] = {
    "small": Recipe(ModelSize(), VQRecipe(), WarmStartRecipe()),
    "large": Recipe(
        ModelSize(hidden=512, layers=9, head_width=64, code_width=32, channels=32),
        VQRecipe(decoder_steps=1500, encoder_steps=1500),
        WarmStartRecipe(steps=4000, lr=8e-4, initial_std=0.035),
    ),
}
