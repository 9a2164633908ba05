"""From a validated config to the objects of a run; one function a part, used by every entry point."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kernels import BackendUnavailable, Operations, operations
from src import algorithms
from src.config import UserError
from src.policies.base import Policy
from src.rewards.base import RewardExpert
from src.rewards.ensemble import RewardEnsemble
from src.rollout.levels import RolloutSettings
from src.training.collect import CollectSettings
from src.training.evaluation import EvaluationSettings
from src.training.module import BiCoTModule, OptimSettings
from src.training.update import UpdateSettings
from src.values import Sampling


def plain(node: Any) -> Any:
    """A config node as resolved, plain Python."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def device() -> torch.device:
    """Where kernels will run: the GPU of this process if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_data(config: DictConfig) -> Any:
    """The prompt data module, its files read.

    Raises:
        UserError: for a missing or malformed prompts file, with its line.
    """
    module = _made("data", config.data, prompts_per_step=config.rollout.prompts_per_step, seed=config.run.seed)
    try:
        module.setup("fit")
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return module


def build_policy(config: DictConfig) -> Policy:
    """The policy; fresh adapters are drawn from the run's seed.

    Raises:
        UserError: for a checkpoint or adapter that cannot be used.
    """
    torch.manual_seed(config.run.seed)
    return _made("model", config.model, _convert_="all")


def build_rewards(config: DictConfig) -> RewardEnsemble:
    """The experts and their ensemble."""
    experts: dict[str, RewardExpert] = {
        name: _made(f"rewards.experts.{name}", node) for name, node in config.rewards.experts.items()
    }
    try:
        return RewardEnsemble(experts, plain(config.rewards.weights), config.rewards.combine)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_algorithm(config: DictConfig) -> algorithms.Algorithm:
    """The algorithm variant, checked against the rest of the config."""
    try:
        algorithm = algorithms.load(config.algorithm.name)
    except ValueError as error:
        raise UserError(str(error)) from error
    if config.algorithm.updates_per_rollout > 1 and not algorithm.several_updates:
        raise UserError(
            f"algorithm.updates_per_rollout={config.algorithm.updates_per_rollout}: {algorithm.name} has no importance"
            " ratio, which makes only the first update sound: choose 1"
        )
    return algorithm


def build_operations(config: DictConfig) -> Operations:
    """The kernels' backend."""
    try:
        return operations(config.kernels, device())
    except BackendUnavailable as error:
        raise UserError(str(error)) from error


def rollout_settings(config: DictConfig) -> RolloutSettings:
    """How both levels are sampled."""
    rollout = config.rollout
    return RolloutSettings(
        plan=Sampling(rollout.plan.temperature),
        image=Sampling(rollout.image.temperature, rollout.guidance_scale),
        max_plan_tokens=rollout.max_plan_tokens,
    )


def evaluation_settings(config: DictConfig) -> EvaluationSettings:
    """How evaluations sample: as training does, with their own seed."""
    return EvaluationSettings(
        rollout_settings(config),
        config.evaluation.seed,
        config.evaluation.samples_per_prompt,
        config.evaluation.batch_size,
    )


def build_module(config: DictConfig, policy: Policy, rewards: RewardEnsemble) -> BiCoTModule:
    """The LightningModule of a training run."""
    variant, optim = config.algorithm, plain(config.optim)
    guided = variant.logp == "guided"
    return BiCoTModule(
        policy,
        rewards,
        build_operations(config),
        build_algorithm(config),
        CollectSettings(
            config.run.seed,
            config.rollout.group_size,
            rollout_settings(config),
            guided,
            reference=variant.beta > 0,
            unfinished_plan_penalty=variant.unfinished_plan_penalty,
        ),
        UpdateSettings(variant.beta, variant.kl, guided, variant.clip_low, variant.clip_high),
        OptimSettings(**{**optim, "betas": tuple(optim["betas"])}),
        variant.updates_per_rollout,
        config.trainer.max_steps,
    )


def _made(key: str, node: DictConfig, **extra: Any) -> Any:
    """Instantiate a part; what goes wrong inside is told as the user's input at `key`."""
    from hydra.errors import InstantiationException

    try:
        return instantiate(node, **extra)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, (ValueError, TypeError, OSError, ImportError, AttributeError)):
            raise UserError(f"{key}: {cause}") from error
        raise
