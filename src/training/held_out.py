"""Evaluation: fresh rollouts on held-out prompts with fixed keys, scored and summed up by prompt kind."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from src.policies.base import Decoder, Policy
from src.rewards.base import RewardError
from src.rewards.ensemble import RewardEnsemble
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import RolloutKey
from src.values import PromptRecord, RewardReport


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How an evaluation samples: its own seed, so that runs of different seeds are compared on the same noise."""

    rollout: RolloutSettings
    seed: int
    samples_per_prompt: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One evaluated rollout; `details` are the experts' further figures that apply to it.

    reward: in the scores' own units; None where an expert failed and may be dropped, or none with a weight applies.
    """

    index: int
    kind: str
    prompt: str
    plan: str
    ended: bool
    reward: float | None
    scores: dict[str, float]
    details: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All samples of one evaluation, in the order of the prompts."""

    samples: tuple[Sample, ...]

    def means(self) -> dict[str, float]:
        """``reward``, each expert's score, each detail and ``plan/ended``, over all samples they apply to."""
        return _means(self.samples)

    def by_kind(self) -> dict[str, dict[str, float]]:
        """`means` for each kind of prompt, kinds sorted, with the number of samples as ``n``."""
        kinds = sorted({sample.kind for sample in self.samples})
        return {
            kind: {**_means(chosen), "n": float(len(chosen))}
            for kind in kinds
            for chosen in [[sample for sample in self.samples if sample.kind == kind]]
        }


def evaluate(
    policy: Policy,
    decoder: Decoder,
    rewards: RewardEnsemble,
    records: Sequence[PromptRecord],
    settings: EvaluationSettings,
    stream: str,
    between: Callable[[int, int], object] = lambda done, total: None,
    seen: Callable[[SampledBatch], object] = lambda batch: None,
) -> Evaluation:
    """Roll out every record `samples_per_prompt` times and score it; ranks share the work.

    stream: names the noise ("validation", "test"). between: called with (done, total) before each batch;
    may raise to stop. seen: called with each batch of this rank.
    """
    jobs = [(index, sample) for index in range(len(records)) for sample in range(settings.samples_per_prompt)]
    mine = jobs[_rank() :: _world()]
    samples: list[Sample] = []
    for batch in sampled(policy, decoder, rewards, records, mine, settings, stream, between):
        seen(batch)
        samples += batch.samples
    rewards.reset()
    whole = tuple(sorted(_gathered(samples), key=lambda sample: sample.index))
    if whole and all(sample.reward is None for sample in whole):
        name, problem = next(iter(rewards.problems.items()), ("ensemble", "an expert failed on another rank"))
        raise RewardError(name, f"not one of {len(whole)} images could be judged: {problem}")
    return Evaluation(whole)


@dataclass(frozen=True, slots=True)
class SampledBatch:
    """One batch of an evaluation: (prompt, sample) numbers, and of each its rollout and what came of it."""

    jobs: Sequence[tuple[int, int]]
    rollouts: Rollouts
    samples: Sequence[Sample]


def sampled(
    policy: Policy,
    decoder: Decoder,
    rewards: RewardEnsemble,
    records: Mapping[int, PromptRecord] | Sequence[PromptRecord],
    jobs: Sequence[tuple[int, int]],
    settings: EvaluationSettings,
    stream: str,
    between: Callable[[int, int], object] = lambda done, total: None,
    every_prompt: bool = True,
) -> Iterator[SampledBatch]:
    """Roll out and score (number of a record, number of a sample), batch by batch; both key the noise.

    stream, between: see `evaluate`. every_prompt: see `RewardEnsemble`.
    """
    for start in range(0, len(jobs), settings.batch_size):
        between(start, len(jobs))
        chosen = jobs[start : start + settings.batch_size]
        asked = [records[index] for index, _ in chosen]
        keys = [RolloutKey(settings.seed, stream, 0, index, sample) for index, sample in chosen]
        rollouts = roll_out(policy, decoder, [record.prompt for record in asked], keys, settings.rollout)
        report = rewards(rollouts.pixels, asked, every_prompt=every_prompt)
        yield SampledBatch(chosen, rollouts, _samples([index for index, _ in chosen], asked, rollouts, report))


def _samples(
    indices: Sequence[int], records: Sequence[PromptRecord], rollouts: Rollouts, report: RewardReport
) -> list[Sample]:
    totals, ended = report.total.tolist(), rollouts.ended.tolist()
    scores, details = report.scores.tolist(), {name: values.tolist() for name, values in report.details.items()}
    return [
        Sample(
            index=indices[row],
            kind=record.task_type,
            prompt=record.prompt,
            plan=rollouts.plans[row],
            ended=ended[row],
            reward=totals[row] if totals[row] == totals[row] else None,
            scores={n: s for n, s in zip(report.names, scores[row], strict=True) if s == s},
            details={n: values[row] for n, values in details.items() if values[row] == values[row]},
        )
        for row, record in enumerate(records)
    ]


def _means(samples: Sequence[Sample]) -> dict[str, float]:
    columns: dict[str, list[float]] = {}
    for sample in samples:
        reward = {} if sample.reward is None else {"reward": sample.reward}
        figures = {**reward, **sample.scores, **sample.details, "plan/ended": float(sample.ended)}
        for name, value in figures.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}


def told_nothing(samples: Sequence[Sample], names: Sequence[str], failed: Container[str]) -> dict[str, str]:
    """By name, the experts that scored none of the samples, or all alike, each with a sentence for the user.

    failed: experts that could not score; theirs is another story.
    """
    told = {}
    for name in names:
        scores = [sample.scores[name] for sample in samples if name in sample.scores]
        if not scores and samples and name not in failed:
            told[name] = f"expert {name!r} applies to none of the {len(samples)} pictures"
        elif len(scores) > 1 and min(scores) == max(scores):
            told[name] = f"expert {name!r} gave all {len(scores)} pictures the same score, {scores[0]:g}"
    return told


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(samples: list[Sample]) -> list[Sample]:
    if _world() == 1:
        return samples
    parts: list[list[Sample]] = [[] for _ in range(_world())]
    dist.all_gather_object(parts, samples)
    return [sample for part in parts for sample in part]


def pictures(
    policy: Policy, decoder: Decoder, records: Sequence[PromptRecord], settings: EvaluationSettings
) -> tuple[list[str], Tensor]:
    """Plans and pixels (N, 3, H, W) of one rollout a record, with keys of their own."""
    keys = [RolloutKey(settings.seed, "pictures", 0, index, 0) for index in range(len(records))]
    with torch.no_grad():
        rollouts = roll_out(policy, decoder, [record.prompt for record in records], keys, settings.rollout)
    return rollouts.plans, rollouts.pixels
