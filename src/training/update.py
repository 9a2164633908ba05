"""One optimiser step from an experience: microbatches, one normaliser for all of them, clipping.

The normaliser is the count of the whole optimiser step, over both levels, all microbatches and all ranks, so
that neither accumulation nor the number of GPUs changes the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels import Objective, Operations, TokenStatistics
from src.algorithms import (
    Algorithm,
    LevelCounts,
    LossInputs,
    count,
    means,
    merge,
    normaliser,
    sampler_mismatch,
    shared_normalisers,
    token_weights,
)
from src.algorithms.correction import truncated_importance
from src.config.schema import AlgorithmConfig
from src.training.token_statistics import has_reference, head_arguments, level_statistics, sampled_logp
from src.values import Experience, LevelOutput, LossOutput, TokenLevel

# A metric that stands only where a level's loss is not finite.
NOT_FINITE = "loss_not_finite"
Metrics = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rollouts of an experience and what turns their loss into a part of the whole step's.

    `scale` multiplies the loss: DDP averages gradients over ranks, the objective sums them. `normalisers` are
    those of each level, where levels have shares of their own. `entropy_bonus` by level, 0 where not named.
    """

    levels: Mapping[str, TokenLevel]
    advantages: Mapping[str, Tensor]
    normaliser: float
    scale: float = 1.0
    normalisers: Mapping[str, float] | None = None
    entropy_bonus: Mapping[str, float] = field(default_factory=dict)


def microbatches(
    experience: Experience,
    size: int | None,
    algorithm: Algorithm,
    max_tokens: Mapping[str, int],
    world: Callable[[Tensor], Tensor],
    ranks: int,
    level_shares: Mapping[str, float] | None = None,
    entropy_bonus: Mapping[str, float] | None = None,
    split_levels: bool = False,
) -> Iterator[MicroBatch]:
    """Cut an experience into parts of at most `size` rollouts, without the token columns that no row of one counts.

    max_tokens: the longest a row of each level can become, a setting. world: sums a tensor over ranks.
    level_shares: the weight of each level in the loss; None: every token weighs alike. split_levels: a part is
    one level of its rollouts, so that a backward holds the graph of one level at a time.
    """
    counts = step_counts(experience, max_tokens, world)
    total = normaliser(algorithm.aggregation, counts) or 1.0  # no token counts: the loss is 0, over anything
    shared = None if level_shares is None else shared_normalisers(algorithm.aggregation, counts, level_shares)
    rollouts = len(experience)
    size = size or rollouts
    for start in range(0, rollouts, size):
        rows = slice(start, min(start + size, rollouts))
        names = tuple(experience.levels)
        for part in [(name,) for name in names] if split_levels else [names]:
            yield MicroBatch(
                {name: _counted_columns(experience.levels[name].rows(rows)) for name in part},
                {name: experience.advantages[name][rows] for name in part},
                total,
                float(ranks),
                shared,
                entropy_bonus or {},
            )


def _counted_columns(level: TokenLevel) -> TokenLevel:
    """The level up to the last token that any row counts; one column where none does."""
    used = level.mask.any(0).nonzero()
    return level.first_tokens(int(used[-1]) + 1 if len(used) else 1)


def step_counts(
    experience: Experience, max_tokens: Mapping[str, int], world: Callable[[Tensor], Tensor]
) -> dict[str, LevelCounts]:
    """What the normaliser of the optimiser step is made of, by level, over all ranks."""
    counts = {name: count(level.mask, max_tokens[name]) for name, level in experience.levels.items()}
    local = torch.tensor([[c.tokens, c.sequences] for c in counts.values()], dtype=torch.float64)
    summed = world(local)
    return {
        name: c._replace(tokens=float(row[0]), sequences=float(row[1]))
        for (name, c), row in zip(counts.items(), summed, strict=True)
    }


def step_loss(
    outputs: Mapping[str, LevelOutput],
    batch: MicroBatch,
    operations: Operations,
    algorithm: Algorithm,
    settings: AlgorithmConfig,
) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
    """The microbatch's share of the loss, metrics that add up by level, and each level's detached log-probs."""
    loss: Tensor | None = None
    metrics: Metrics = {}
    logps: dict[str, Tensor] = {}
    for name, level in batch.levels.items():
        if in_one_pass(operations, algorithm, level, settings):
            statistics, part = one_pass_loss(name, level, outputs[name], batch, operations, algorithm, settings)
        else:
            bonus = batch.entropy_bonus.get(name, 0.0) > 0
            statistics = level_statistics(
                operations,
                outputs[name],
                level,
                settings.guided,
                kl=settings.loss_kl,
                entropy=True,
                entropy_grad=bonus,
            )
            part = level_loss(name, level, statistics, batch, algorithm, settings)
        logps[name] = statistics.logp.detach()
        loss = part.loss if loss is None else loss + part.loss
        metrics[name] = dict(part.metrics)
    assert loss is not None
    return loss * batch.scale, metrics, logps


def in_one_pass(operations: Operations, algorithm: Algorithm, level: TokenLevel, settings: AlgorithmConfig) -> bool:
    """Whether the gradient comes out of the forward pass, as soon as a token's row is known; else by autograd.

    A correction before the first update is a function of this very pass's log-probs: not known beforehand.
    """
    known = settings.correction_cap is None or level.old_logp is not None
    return operations.prefers_one_pass and algorithm.closed_form is not None and known


def one_pass_loss(
    name: str,
    level: TokenLevel,
    output: LevelOutput,
    batch: MicroBatch,
    operations: Operations,
    algorithm: Algorithm,
    settings: AlgorithmConfig,
) -> tuple[TokenStatistics, LossOutput]:
    """As :func:`level_loss`, the gradient with respect to the features out of the forward pass."""
    assert algorithm.closed_form is not None
    bonus, referred = batch.entropy_bonus.get(name, 0.0), has_reference(level)
    sampled = sampled_logp(name, level, settings.guided)
    objective = Objective(
        algorithm.closed_form,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        beta=settings.loss_beta if referred else 0.0,
        kl=settings.loss_kl if referred else None,
        entropy_bonus=bonus,
    )
    correction = None
    if level.old_logp is not None:
        correction = _correction(level, level.old_logp, sampled, settings.correction_cap)
    loss, statistics = operations.one_pass_head(
        **head_arguments(output, level, settings.guided),
        objective=objective,
        advantages=batch.advantages[name],
        token_weights=token_weights(level.mask, algorithm.aggregation),
        normaliser=batch.normaliser if batch.normalisers is None else batch.normalisers[name],
        old_logp=level.old_logp,
        correction=correction,
        once=True,
    )
    return statistics, replace(level_loss(name, level, statistics, batch, algorithm, settings), loss=loss)


def level_loss(
    name: str,
    level: TokenLevel,
    statistics: TokenStatistics,
    batch: MicroBatch,
    algorithm: Algorithm,
    settings: AlgorithmConfig,
) -> LossOutput:
    """One level's part of the loss; one that is not finite is marked in its metrics, for all ranks to skip the step."""
    sampled = sampled_logp(name, level, settings.guided)
    inputs = LossInputs(
        logp=statistics.logp,
        advantages=batch.advantages[name],
        mask=level.mask,
        old_logp=level.old_logp,
        kl=statistics.kl,
        entropy=statistics.entropy,
        correction=_correction(level, statistics.logp, sampled, settings.correction_cap),
    )
    output = algorithm.loss(
        inputs,
        normaliser=batch.normaliser if batch.normalisers is None else batch.normalisers[name],
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        beta=settings.loss_beta if statistics.kl is not None else 0.0,
        entropy_bonus=batch.entropy_bonus.get(name, 0.0),
    )
    if not torch.isfinite(output.loss):
        output = replace(output, metrics={**output.metrics, NOT_FINITE: torch.ones_like(output.loss)})
    if level.old_logp is not None:
        return output
    # Before the first update the same weights sampled these tokens: what differs is numerics.
    mismatch = sampler_mismatch(sampled, statistics.logp, level.mask)
    return replace(output, metrics={**output.metrics, **mismatch})


def _correction(level: TokenLevel, logp: Tensor, sampled: Tensor, cap: float | None) -> Tensor | None:
    """Weights (N, T) for a sampler that differs from training, under the weights that sampled; None without a cap."""
    if cap is None:
        return None
    return truncated_importance(logp if level.old_logp is None else level.old_logp, sampled, level.mask, cap)


def run_update(
    experience: Experience,
    parts: Sequence[MicroBatch],
    forward: Callable[[MicroBatch], tuple[Tensor, Metrics, dict[str, Tensor]]],
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Metrics, Experience]:
    """Accumulate the gradient of all parts; gradients are synchronised with the last one only.

    Returns the metrics of all parts together, and the experience with the log-probs of this pass kept as
    `old_logp` where it had none, for further updates on the same rollouts.
    """
    metrics: list[Metrics] = []
    logps: list[dict[str, Tensor]] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with nullcontext() if last else no_sync():
            loss, measured, logp = forward(part)
            backward(loss)
        metrics.append(measured)
        logps.append(logp)
    merged = {name: merge([m[name] for m in metrics if name in m]) for name in experience.levels}
    levels = {
        name: level
        if level.old_logp is not None
        else replace(level, old_logp=_in_order([logp[name] for logp in logps if name in logp], level.ids.shape[1]))
        for name, level in experience.levels.items()
    }
    return merged, replace(experience, levels=levels)


def _in_order(parts: Sequence[Tensor], length: int) -> Tensor:
    """Values (n, t) of all parts one after the other, (N, length); 0 in the columns that a part left out."""
    return torch.cat([pad(part, (0, length - part.shape[1])) for part in parts])


def shown(metrics: Metrics) -> dict[str, float]:
    """Metrics of all levels as flat means for the logs: ``plan/kl``, ``image/ratio`` ..."""
    return {f"{level}/{name}": value for level, part in metrics.items() for name, value in means(part).items()}
