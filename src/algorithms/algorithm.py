"""What an algorithm variant is, and how its name in a config finds it.

A variant is one file in ``variants/``, named as in ``algorithm.name``, with a constant ``ALGORITHM``; a new
one needs no other change than its YAML.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from torch import Tensor

from src.algorithms import variants
from src.algorithms.losses import Aggregation, LossInputs, Surrogate, assemble
from src.values import LossOutput


class AdvantageFunction(Protocol):
    """(total (N,), group_size) -> advantages (N,); see :mod:`src.algorithms.advantages`."""

    def __call__(self, total: Tensor, group_size: int) -> Tensor: ...


class SurrogateFunction(Protocol):
    """(inputs, clip_low, clip_high) -> what to maximise for each token."""

    def __call__(self, inputs: LossInputs, clip_low: float, clip_high: float) -> Surrogate: ...


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One variant: how rewards become advantages, what is maximised, how tokens are averaged; and its facts.

    clips: whether clip_low / clip_high mean anything. several_updates: whether more than one update on a
    rollout is sound (the surrogate has an importance ratio). whole_batch: the advantages need the rewards of
    the whole prompt batch, over all ranks, not only of a group. group_baseline: a group whose rewards are all
    equal has advantages of zero, so that it may be dropped. per_token: the gradient of a token depends
    on that token alone. closed_form: the surrogate's name in :data:`kernels.SURROGATES` if it is one of those,
    so that the one-pass head can compute its gradient in the forward pass; None: by autograd.
    """

    name: str
    advantages: AdvantageFunction
    surrogate: SurrogateFunction
    aggregation: Aggregation = "token"
    clips: bool = True
    several_updates: bool = True
    whole_batch: bool = False
    group_baseline: bool = True
    per_token: bool = True
    closed_form: str | None = None

    def loss(
        self,
        inputs: LossInputs,
        *,
        normaliser: float | Tensor,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        beta: float = 0.0,
        entropy_bonus: float = 0.0,
    ) -> LossOutput:
        """The loss of one level of some rollouts; see :func:`src.algorithms.losses.assemble`."""
        return assemble(
            inputs,
            self.surrogate(inputs, clip_low, clip_high),
            normaliser=normaliser,
            aggregation=self.aggregation,
            beta=beta,
            entropy_bonus=entropy_bonus,
        )


def names() -> tuple[str, ...]:
    """The variants there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(variants.__path__)))


def load(name: str) -> Algorithm:
    """The variant called `name`. Raises ValueError, with the choices, where there is none."""
    if name not in names():
        raise ValueError(f"algorithm.name={name}: no such variant; choose one of {', '.join(names())}")
    return import_module(f"{variants.__name__}.{name}").ALGORITHM
