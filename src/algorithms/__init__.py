"""Advantages, surrogates, losses and KL: pure functions of tensors, and the variants made of them.

The most used names are re-exported; ``correction``, ``entropy``, ``kl`` and ``plan_length`` are imported by module.
"""

from src.algorithms.advantages import (
    batch_normalised,
    group_centred,
    group_centred_batch_normalised,
    group_normalised,
    leave_one_out,
    share_without_signal,
    weigh_levels,
    without_signal,
)
from src.algorithms.algorithm import Algorithm, load, names
from src.algorithms.checks import check_settings
from src.algorithms.losses import LevelCounts, LossInputs, count, normaliser, shared_normalisers, token_weights
from src.algorithms.metrics import MAXIMA, means, merge, sampler_mismatch

__all__ = [
    "MAXIMA",
    "Algorithm",
    "LevelCounts",
    "LossInputs",
    "batch_normalised",
    "check_settings",
    "count",
    "group_centred",
    "group_centred_batch_normalised",
    "group_normalised",
    "leave_one_out",
    "load",
    "means",
    "merge",
    "names",
    "normaliser",
    "sampler_mismatch",
    "share_without_signal",
    "shared_normalisers",
    "token_weights",
    "weigh_levels",
    "without_signal",
]
