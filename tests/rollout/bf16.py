"""What bf16 does to rollouts at guidance 5, measured: ``python -m tests.rollout.bf16``, a few minutes on a CPU.

Printed for the tests' tiny Janus and for the embedded one, image level: how far the sampler's log-probs lie from
training's where guidance is mixed in the features and where in the logits; how many tokens are others when a prompt is
rolled out alone; and what decoding row by row takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import operations
from src.policies.load import load_janus
from src.rollout.decode import decode
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import group_keys, uniforms
from src.shapes.splits import split_prompts
from src.training.token_statistics import level_statistics
from src.values import IMAGE, LevelOutput, LinearHead, Sampling, TokenContext
from tests.policies.tiny import tiny_policy

GUIDED = RolloutSettings(plan=Sampling(), image=Sampling(1.0, 5.0), max_plan_tokens=12)
TINY_PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .")
SEEDS = 4


class Recorder:
    """A decoder that keeps the features of the last decode, (N, T, F); of both branches under guidance."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._steps: list[Tensor] = []

    def start(self, level: str, context: TokenContext, steps: int) -> Any:
        state, features = self._decoder.start(level, context, steps)
        self._steps = [features.clone()]
        return state, features

    def advance(self, state: Any, ids: Tensor) -> Tensor:
        features: Tensor = self._decoder.advance(state, ids)
        self._steps.append(features.clone())
        return features

    def evaluate(self, level: str, context: TokenContext, ids: Tensor) -> Tensor:
        features: Tensor = self._decoder.evaluate(level, context, ids)
        return features

    def head(self, level: str) -> LinearHead:
        head: LinearHead = self._decoder.head(level)
        return head

    @property
    def features(self) -> Tensor:
        return torch.stack(self._steps, dim=1)


class Distances(NamedTuple):
    """Absolute differences of log-probs, one a token: sampler and training, features mixed in both; logits in the
    sampler; and what of the latter is there with equal features.
    """

    features: Tensor
    logits: Tensor
    mixing: Tensor


def rolled(policy: Any, prompts: Sequence[str], seed: int, decoder: Any = None, rows: int | None = None) -> Rollouts:
    """One rollout of each prompt; `rows` at a time."""
    keys = group_keys(seed, "train", 0, range(len(prompts)), 1)
    settings = RolloutSettings(GUIDED.plan, GUIDED.image, GUIDED.max_plan_tokens, max_rows=rows)
    return roll_out(policy, decoder or policy.decoder(), prompts, keys, settings)


@torch.no_grad()
def distances(policy: Any, prompts: Sequence[str], seed: int) -> Distances:
    """Of the image tokens of one rollout of each prompt."""
    recorder, ops = Recorder(policy.decoder()), operations("torch", "cpu")
    level = rolled(policy, prompts, seed, recorder).levels[IMAGE]
    own, free = recorder.features.chunk(2)
    output = policy({IMAGE: level})[IMAGE]
    trained = level_statistics(ops, output, level, guided=True).logp
    sampled = level_statistics(ops, LevelOutput(own, output.head), level, guided=True).logp
    in_logits = ops.token_statistics(
        output.head(own),
        level.ids,
        unconditional=output.head(free),
        guidance_scale=level.sampling.guidance_scale,
        kl=None,
        entropy=False,
    ).logp
    found = (level.rollout_logp - trained, in_logits - trained, in_logits - sampled)
    return Distances(*(x[level.mask].abs() for x in found))


def others_alone(policy: Any, prompts: Sequence[str], seed: int) -> list[int]:
    """How many image tokens of each prompt are others when it is decoded alone, after the same plan."""
    level = rolled(policy, prompts, seed).levels[IMAGE]
    noise = uniforms(group_keys(seed, "train", 0, range(len(level)), 1), IMAGE, level.ids.shape[1])
    counts = []
    for row in range(len(level)):
        one = slice(row, row + 1)
        context = level.context.rows(one)
        branch = policy.unconditional(context)
        alone = decode(policy.decoder(), IMAGE, context, noise[one], level.sampling, branch)
        counts.append(int((alone.ids[0] != level.ids[row]).sum()))
    return counts


def seconds(policy: Any, prompts: Sequence[str], rows: int | None) -> float:
    """What the processor works on one rollout of each prompt, `rows` at a time."""
    rolled(policy, prompts, 0, rows=rows)
    before = process_time()
    rolled(policy, prompts, 0, rows=rows)
    return process_time() - before


def report(name: str, make: Callable[[int], Any], prompts: Sequence[str]) -> None:
    """Measure the policies that `make` makes of seeds, and print."""
    found = [distances(make(seed), prompts, seed) for seed in range(SEEDS)]
    print(f"{name}: {sum(len(each.features) for each in found)} tokens, {SEEDS} seeds", flush=True)
    for part in Distances._fields:
        values: list[Tensor] = [getattr(each, part) for each in found]
        whole, means = torch.cat(values), " ".join(f"{float(x.mean()):.4f}" for x in values)
        print(f"  {part:9} mean {whole.mean():.5f} max {whole.max():.3f}; mean by seed {means}", flush=True)
    few = prompts[:12]
    counts = [count for seed in range(SEEDS) for count in others_alone(make(seed), few, seed)]
    tokens = len(counts) * make(0).image_tokens
    print(f"  others alone: {sum(counts)} of {tokens} tokens, at most {max(counts)} of one row", flush=True)
    for rows in (None, 1):
        print(f"  {len(few)} rollouts, max_rows={rows}: {seconds(make(0), few, rows):.2f} s", flush=True)


def main() -> None:
    """The tests' tiny Janus, another for each seed; the embedded one on 24 prompts and a few."""
    torch.set_num_threads(1)
    report("tiny", lambda seed: tiny_policy(dtype=torch.bfloat16, seed=seed, side=8), TINY_PROMPTS * 4)
    drawn = [prompt.text for prompt in split_prompts("test")]
    shipped = load_janus(Path("src/shapes/checkpoint"), dtype="bfloat16", lora={"r": 4})
    report("embedded", lambda seed: shipped, drawn[:: len(drawn) // 24])


if __name__ == "__main__":
    main()
