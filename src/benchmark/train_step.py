"""One whole BiCoT step by phase: plan rollout, image rollout, painting, reference, update. Rewards are drawn at random.

The experts are left out: what they cost depends on the choice of experts, and is in every run's log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from kernels import Operations
from src import algorithms
from src.benchmark.clock import WARM_UPS, once
from src.benchmark.models import image_contexts, plan_contexts
from src.benchmark.rollouts import GUIDANCE, Bench
from src.benchmark.rows import Row, failure
from src.config.schema import AlgorithmConfig
from src.policies.sizes import model_sizes
from src.rollout.decode import decode
from src.rollout.noise import group_keys, uniforms
from src.training.collect import with_reference
from src.training.memory import GIB, StepCut, StepShape, choose_cut
from src.training.update import microbatches, run_update, step_loss
from src.values import IMAGE, PLAN, Experience, RewardReport, Sampling, TokenLevel

BETA, CLIP, RATE = 0.01, 0.2, 1e-6
PHASES = ("plan rollout", "image rollout", "paint", "reference", "update")


@dataclass
class TrainStep:
    """A training step of `number` rollouts whose phases can be timed one by one."""

    bench: Bench
    operations: Operations
    number: int
    group_size: int
    guided: bool
    cut: StepCut
    levels: dict[str, TokenLevel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trained = [p for p in self.bench.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE)
        self.algorithm = algorithms.load("grpo")
        logp = "guided" if self.guided else "conditional"
        self.settings = AlgorithmConfig(beta=BETA, clip_low=CLIP, clip_high=CLIP, logp=logp)

    @property
    def phases(self) -> dict[str, Callable[[], Any]]:
        """What is timed, in order."""
        return dict(zip(PHASES, (self.plans, self.images, self.paint, self.reference, self.update), strict=True))

    def plans(self) -> None:
        """Plans of the full length: random weights end none before."""
        policy, bench = self.bench.policy, self.bench
        context = plan_contexts(policy, self.number, self.group_size, bench.lengths)
        noise = uniforms(self._keys(), PLAN, bench.lengths.plan)
        self.levels[PLAN] = decode(policy.decoder(), PLAN, context, noise, Sampling())

    def images(self) -> None:
        policy, bench = self.bench.policy, self.bench
        context = image_contexts(policy, self.number, self.group_size, bench.lengths)
        noise = uniforms(self._keys(), IMAGE, bench.tokens)
        unconditional = policy.unconditional(context)
        sampling = Sampling(guidance_scale=GUIDANCE)
        self.levels[IMAGE] = decode(policy.decoder(), IMAGE, context, noise, sampling, unconditional=unconditional)

    def paint(self) -> None:
        self.bench.policy.paint(self.levels[IMAGE].ids)

    def reference(self) -> None:
        rows = self.cut.score_rows(self.group_size)
        self.levels = with_reference(self.bench.policy, self.operations, self.levels, self.settings, rows)

    def update(self) -> None:
        """Forward, backward, clipping and AdamW over both levels."""
        policy = self.bench.policy
        longest = {name: level.ids.shape[1] for name, level in self.levels.items()}
        parts = list(
            microbatches(
                self._experience(),
                self.cut.microbatch,
                self.algorithm,
                longest,
                lambda local: local,
                1,
                split_levels=self.cut.split_levels,
            )
        )
        self.optimizer.zero_grad()
        run_update(
            self._experience(),
            parts,
            lambda part: step_loss(policy(part.levels), part, self.operations, self.algorithm, self.settings),
            lambda loss: loss.backward(),
        )
        trained = [p for p in policy.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()

    def _keys(self) -> list[Any]:
        return group_keys(0, "benchmark", 0, range(self.number // self.group_size), self.group_size)

    def _experience(self) -> Experience:
        device = self.bench.device
        total = torch.rand(self.number, generator=torch.Generator().manual_seed(0)).to(device)
        report = RewardReport(("random",), total[:, None], torch.ones_like(total[:, None], dtype=torch.bool), total)
        advantages = self.algorithm.advantages(total, self.group_size)
        return Experience(dict(self.levels), dict.fromkeys(self.levels, advantages), report, self.group_size)


def step_cut(bench: Bench, operations: Operations, number: int, group_size: int, memory_gib: float) -> StepCut:
    """How a training run would cut this step on a card of `memory_gib`; on a CPU it is not cut."""
    lengths, on_gpu = bench.lengths, bench.device.type == "cuda"
    shape = StepShape(
        rollouts=number,
        group_size=group_size,
        contexts={PLAN: lengths.instruction, IMAGE: lengths.prompt + lengths.plan},
        plan_tokens=lengths.plan,
        guided=True,
        guided_logp=True,
        reference=True,
        exact_kl=False,
        evaluation_rows=number,
        mixed=False,
        fused_head=operations.prefers_one_pass,
        mask_per_layer=on_gpu,
    )
    card = int(memory_gib * GIB) if on_gpu else None
    return choose_cut(model_sizes(bench.policy), shape, None, None, None, card)


def train_step(bench: Bench, operations: Operations, number: int, group_size: int, memory_gib: float) -> list[Row]:
    """The step with conditional and with guided log-probs: a row each, and one a phase; medians of the rounds."""
    cut = step_cut(bench, operations, number, group_size, memory_gib)
    if cut.activation_checkpointing:
        bench.policy.checkpoint_activations()
    return [row for guided in (False, True) for row in _measured(bench, operations, number, group_size, guided, cut)]


def _measured(
    bench: Bench, operations: Operations, number: int, group_size: int, guided: bool, cut: StepCut
) -> list[Row]:
    kind = "guided" if guided else "conditional"
    whole = f"whole step, {kind}"
    step = TrainStep(bench, operations, number, group_size, guided, cut)
    taken: dict[str, list[float]] = {name: [] for name in step.phases}
    peaks: dict[str, int] = dict.fromkeys(step.phases, 0)
    try:
        for turn in range(-WARM_UPS, bench.rounds):
            for name, phase in step.phases.items():
                seconds, peak = once(phase, bench.device)
                if turn >= 0:
                    taken[name].append(seconds)
                    peaks[name] = max(peaks[name], peak)
    except Exception as error:
        return [failure("train_step", bench.size, number, whole, error)]
    totals = [sum(each) for each in zip(*taken.values(), strict=True)]

    described = f"rollouts a backward: {cut.microbatch or number}, levels split: {cut.split_levels}"
    described += f", activations checkpointed: {cut.activation_checkpointing}"

    def row(what: str, values: list[float], peak: int) -> Row:
        middle = float(torch.tensor(values, dtype=torch.float64).median())
        per_second = number / middle if what == whole else None
        return Row(
            "train_step",
            bench.size,
            number,
            what,
            middle,
            min(values),
            max(values),
            images_per_second=per_second,
            peak_gib=peak / GIB or None,
            note=described if what == whole else "",
        )

    rows = [row(whole, totals, max(peaks.values()))]
    return rows + [row(f"{name}, {kind}", values, peaks[name]) for name, values in taken.items()]
