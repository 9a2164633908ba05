"""One model on all prompts: every rollout with its scores, its picture on disk, and where it lies for diversity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from src.policies.base import Decoder, Policy
from src.rewards.base import RewardError
from src.rewards.ensemble import RewardEnsemble
from src.training.held_out import EvaluationSettings, Sample, SampledBatch, sampled
from src.values import PLAN, PromptRecord

# The stream of a training run's own report on its test prompts: same prompts and seed, same pictures.
STREAM = "test"


@dataclass(frozen=True, slots=True)
class Drawn:
    """One rollout of an evaluation.

    `number` counts the samples of a prompt; `plan_tokens` the plan's, the end token included; `file` is the picture's
    place below the report's folder; `embedding` (D,) float32 on the CPU is what diversity is measured on.
    """

    sample: Sample
    number: int
    plan_tokens: int
    file: str
    embedding: Tensor


def draw(
    policy: Policy,
    decoder: Decoder,
    rewards: RewardEnsemble,
    records: Mapping[int, PromptRecord],
    settings: EvaluationSettings,
    embed: Callable[[Tensor], Tensor],
    save: Callable[[Tensor, str], None],
    folder_name: str,
    between: Callable[[int, int], object],
) -> list[Drawn]:
    """`settings.samples_per_prompt` rollouts of every record, prompt by prompt.

    records: by the number that keys their noise. embed: pixels (N, 3, H, W) to (N, D). save: is given a picture's
    pixels (3, H, W) on the CPU and its `file`, below ``images/<folder_name>``. Raises RewardError where an expert
    fails and may not be dropped, or failed on every image.
    """
    jobs = [(index, sample) for index in records for sample in range(settings.samples_per_prompt)]
    drawn: list[Drawn] = []
    with torch.no_grad():
        parts = sampled(policy, decoder, rewards, records, jobs, settings, STREAM, between=between, every_prompt=False)
        for part in parts:
            for one, pixels in _drawn(part, embed, folder_name):
                save(pixels, one.file)
                drawn.append(one)
    rewards.reset()
    if rewards.problems and all(one.sample.reward is None for one in drawn):
        name, problem = next(iter(rewards.problems.items()))
        raise RewardError(name, f"none of {len(drawn)} images could be judged: {problem}")
    return drawn


def _drawn(batch: SampledBatch, embed: Callable[[Tensor], Tensor], folder_name: str) -> Iterator[tuple[Drawn, Tensor]]:
    """Every rollout of a batch, with its pixels on the CPU."""
    pixels, embeddings = batch.rollouts.pixels.cpu(), embed(batch.rollouts.pixels).float().cpu()
    lengths = batch.rollouts.levels[PLAN].mask.sum(1).tolist()
    for row, ((index, number), sample) in enumerate(zip(batch.jobs, batch.samples, strict=True)):
        file = f"images/{folder_name}/{index:05d}_{number:02d}.png"
        yield Drawn(sample, number, lengths[row], file, embeddings[row].clone()), pixels[row]
