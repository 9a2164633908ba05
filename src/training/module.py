"""The LightningModule: policy and frozen reference, experts, algorithm; its steps are plain functions elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from kernels import Operations
from src.algorithms import Algorithm
from src.config.schema import AlgorithmConfig, Config, OptimConfig
from src.policies.base import FollowsTraining, MixedPrecision, RefreshableReference, Shardable
from src.policies.dtensors import write_whole
from src.rewards.ensemble import RewardEnsemble
from src.training.collect import Collected, collect
from src.training.entropy_control import EntropyControl
from src.training.memory import StepCut
from src.training.options.dynamic_sampling import keyed_records
from src.training.ranks import current_ranks
from src.training.sharded import ShardedStrategy, kept_states
from src.training.token_statistics import evaluated
from src.training.update import Metrics, MicroBatch, step_loss
from src.values import IMAGE, Experience, PromptBatch, PromptRecord

# What the progress bar shows, where a step has it.
PROGRESS_METRICS = ("reward", "all_correct", "plan/kl", "image/kl", "seconds")


# A step in one backward pass.
WHOLE_STEP = StepCut()


class BiCoTModule(L.LightningModule):
    """Policy, rewards and algorithm as Lightning sees them; driven by `GroupedRolloutLoop`.

    `training_step` is the differentiable part of one microbatch (called through the strategy, so that DDP
    and FSDP wrap it); everything without a graph happens in `collect`.
    """

    def __init__(
        self,
        config: Config,
        policy: Any,
        rewards: RewardEnsemble,
        operations: Operations,
        algorithm: Algorithm,
        cut: StepCut = WHOLE_STEP,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        # A checkpoint holds what is trained; the frozen weights come from the model's own files.
        self.strict_loading = False
        self.policy = policy
        self.rewards = rewards
        self.operations = operations
        self.algorithm = algorithm
        self.config = config
        self.cut = cut
        # Rollouts a backward pass; the loop halves it where memory runs out.
        self.microbatch = cut.microbatch
        self.score_rows = cut.score_rows(config.rollout.group_size)
        self.updates_per_rollout: int = config.algorithm.updates_per_rollout
        self.max_steps: int = config.trainer.max_steps
        self.entropy = EntropyControl(config.algorithm)
        self.collected: Collected | None = None
        self.step_metrics: dict[str, float] = {}
        self._sharded = False
        self._configured = False

    @property
    def variant(self) -> AlgorithmConfig:
        """The settings of the objective."""
        settings: AlgorithmConfig = self.config.algorithm
        return settings

    @property
    def optim(self) -> OptimConfig:
        """The settings of the optimiser."""
        return self.config.optim

    def configure_model(self) -> None:
        """Cut the trained weights over the ranks, where the strategy asks for it; else have float32 masters of bf16
        products decode as bf16. Lightning may call more than once.

        Raises:
            ValueError: for a policy that cannot be cut.
        """
        if self._configured:
            return
        self._configured = True
        strategy = self.trainer.strategy
        if not isinstance(strategy, ShardedStrategy):
            if self.trainer.precision == "bf16-mixed" and isinstance(self.policy, MixedPrecision):
                self.policy.decode_in(torch.bfloat16)
            return
        if not isinstance(self.policy, Shardable):
            raise ValueError(
                f"trainer.strategy=fsdp: {type(self.policy).__name__} has no shard(); use trainer=ddp, or give the"
                " policy what Shardable asks for"
            )
        self.policy.shard(strategy.device_mesh["data_parallel"], strategy.dtype)
        self._sharded = True

    def on_fit_start(self) -> None:
        self.rewards.to(self.device)

    def weights_changed(self) -> None:
        """After an optimiser step, or anything else that wrote to the trained weights. All ranks at once."""
        if isinstance(self.policy, FollowsTraining):
            self.policy.refresh_rollout_weights()

    def collect(self, batch: PromptBatch) -> Collected:
        """Experience of one prompt batch, with the weights as they are."""
        self.collected = collect(
            self.policy,
            self.rewards,
            self.operations,
            self.algorithm,
            batch,
            self.config,
            self.refill_prompts,
            current_ranks(),
            self.score_rows,
        )
        return self.collected

    def refill_prompts(self, step: int, attempt: int, positions: Sequence[int]) -> Sequence[PromptRecord]:
        """Further training prompts for dynamic sampling, from the trainer's data module."""
        records: Sequence[PromptRecord] = self.trainer.datamodule.train_records  # type: ignore[attr-defined]
        return keyed_records(records, self.config.run.seed, step, attempt, positions)

    def refresh_reference(self, step: int) -> bool:
        """At optimiser step `step`, after a prompt batch: take today's weights as the reference if it is time.

        Several updates on one batch move the step by more than one. Returns whether it was done.
        """
        every = self.variant.reference_refresh
        if every is None or step // every == (step - self.updates_per_rollout) // every:
            return False
        self.policy.refresh_reference()
        return True

    def training_step(self, batch: MicroBatch, batch_idx: int = 0) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """Loss of one microbatch; see `step_loss`."""
        return step_loss(self.policy(batch.levels), batch, self.operations, self.algorithm, self.variant)

    def refreshed(self, experience: Experience) -> Experience:
        """The experience with the guidance branch's features under the weights as they are now."""
        level = experience.levels[IMAGE]
        if not self.variant.guided or level.unconditional is None:
            return experience
        features = evaluated(self.policy.decoder(), IMAGE, level.unconditional, level.ids, self.score_rows)
        return replace(experience, levels={**experience.levels, IMAGE: replace(level, unconditional_features=features)})

    def configure_optimizers(self) -> dict[str, Any]:
        trained, optim = [parameter for parameter in self.parameters() if parameter.requires_grad], self.optim
        first, second = optim.betas
        optimizer = torch.optim.AdamW(trained, lr=optim.lr, betas=(first, second), weight_decay=optim.weight_decay)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)}

    def lr_factor(self, step: int) -> float:
        """Share of the learning rate at optimiser step `step`: linear warm-up, then the schedule."""
        optim = self.optim
        if step < optim.warmup_steps:
            return (step + 1) / optim.warmup_steps
        if optim.schedule == "constant":
            return 1.0
        span = max(1, self.max_steps - optim.warmup_steps)
        done = min(1.0, (step - optim.warmup_steps) / span)
        shape = 1.0 - done if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return optim.final_lr_fraction + (1.0 - optim.final_lr_fraction) * shape

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.trained_state()
        if self.entropy.used:
            checkpoint["entropy_control"] = self.entropy.state_dict()
        if self.rewards.running:
            checkpoint["rewards"] = self.rewards.state_dict()
        if self.variant.reference_refresh is not None:
            assert isinstance(self.policy, RefreshableReference)
            checkpoint["reference"] = self.policy.reference_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._keep_settings(checkpoint)
        if "entropy_control" in checkpoint:
            self.entropy.load_state_dict(checkpoint["entropy_control"])
        if "rewards" in checkpoint:
            self.rewards.load_state_dict(checkpoint["rewards"])
        if checkpoint.get("reference"):
            assert isinstance(self.policy, RefreshableReference)
            self.policy.load_reference_state(checkpoint["reference"])

    def _keep_settings(self, checkpoint: dict[str, Any]) -> None:
        """Optimiser and schedule keep their settings in their states; a run resumed with others has its own."""
        optim = self.optim
        for schedule in checkpoint["lr_schedulers"]:
            lr = optim.lr * self.lr_factor(schedule["last_epoch"])
            schedule |= {"base_lrs": [optim.lr], "_last_lr": [lr]}
            for group in (group for state in checkpoint["optimizer_states"] for group in state["param_groups"]):
                group |= {"lr": lr, "initial_lr": optim.lr, "weight_decay": optim.weight_decay}
                group["betas"] = type(group["betas"])(optim.betas)

    def trained_state(self) -> dict[str, Tensor]:
        """The trained parameters by name, whole, on the CPU; all ranks at once. Cut over ranks, for the first only."""
        trained = ((name, p) for name, p in self.named_parameters() if p.requires_grad)
        return kept_states(trained, keep=not self._sharded or self.trainer.is_global_zero)

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trained_state` gave, in place. All ranks at once, each with all of it."""
        parameters = dict(self.named_parameters())
        for name, value in state.items():
            write_whole(parameters[name], value)
        self.weights_changed()

    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        shown = {name: self.step_metrics[name] for name in PROGRESS_METRICS if name in self.step_metrics}
        self.log_dict(shown, prog_bar=True, logger=False, batch_size=1)
