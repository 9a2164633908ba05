"""From a validated config to the objects of a run; one function a part, used by every entry point."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from kernels import BackendUnavailable, Operations, operations
from src import algorithms
from src.config.allowed_targets import check_part, factory
from src.config.errors import UserError
from src.config.masking import MASK, masked_keys
from src.config.schema import typed
from src.policies.base import EngineSettings, HasEngine, Policy, RecomputesActivations, RefreshableReference
from src.rewards.base import RewardError, RewardExpert
from src.rewards.coverage import check_covered
from src.rewards.coverage import silent_experts as silent_rewards
from src.rewards.ensemble import RewardEnsemble
from src.rewards.local import OFFLOAD, LocalExperts
from src.rewards.remote import RemoteExperts, RemoteSettings, is_loopback
from src.rollout.levels import RolloutSettings
from src.training.held_out import EvaluationSettings
from src.training.memory import StepCut
from src.training.module import BiCoTModule

TOKEN_VARIABLE, SHORTEST_TOKEN = "BICOT_REWARDS_TOKEN", 16


def plain(node: Any) -> Any:
    """A config node as resolved, plain Python."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def device(config: DictConfig | None = None) -> torch.device:
    """Where this process computes: its GPU if there is one, unless the trainer is told to use the CPU."""
    on_cpu = config is not None and OmegaConf.select(config, "trainer.accelerator", default="auto") == "cpu"
    return torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")


def plugins(config: DictConfig) -> list[str]:
    """The packages that ``plugins=`` lets a config name code of."""
    return list(config.get("plugins") or ())


def build_data(config: DictConfig) -> Any:
    """The prompt data module, its files read.

    Raises:
        UserError: for a missing or malformed prompts file, with its line.
    """
    keyed = {"prompts_per_step": config.rollout.prompts_per_step, "seed": config.run.seed}
    module = _made("data", "data", config.data, plugins(config), **keyed)
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
    # "auto" asks for a GPU; told to leave it alone, the weights stay in what a CPU computes in.
    on_cpu = config.model.get("dtype") == "auto" and device(config).type == "cpu"
    dtype = {"dtype": "float32"} if on_cpu else {}
    policy = _made("model", "model", config.model, plugins(config), **dtype)
    if isinstance(policy, HasEngine):
        policy.engine = engine_settings(config)
    return policy


def build_rewards(config: DictConfig) -> RewardEnsemble:
    """The experts and their ensemble: those with an entry in ``rewards.devices`` here, the others where
    ``rewards.remote.url`` says, or here if it says nothing.

    Raises:
        UserError: for settings that cannot work, or a server that does not answer.
    """
    rewards = config.rewards
    names, devices = list(rewards.experts), checked_devices(rewards)
    here = [name for name in names if rewards.remote.url is None or name in devices]
    # The server first: that it is missing shall show before any weight is loaded.
    remote = _remote(rewards, [name for name in names if name not in here])
    try:
        return RewardEnsemble(
            build_experts(rewards, here, plugins(config)),
            plain(rewards.weights),
            rewards.combine,
            plain(rewards.normalise),
            rewards.on_error,
            devices,
            remote,
            names,
            rewards.faithful,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def silent_experts(rewards: RewardEnsemble, data: Any) -> dict[str, str]:
    """The experts that apply to no prompt of a data module, each with a sentence for the user.

    Raises:
        UserError: where no expert that rewards applies to any training prompt.
    """
    parts = {
        name: getattr(data, f"{name}_records", ())  # a data module of somebody else's may keep no training list
        for name in ("train", "validation", "test")
    }
    try:
        check_covered(rewards, parts["train"])
    except ValueError as error:
        raise UserError(str(error)) from error
    return silent_rewards(rewards, {"training" if name == "train" else name: part for name, part in parts.items()})


def build_experts(rewards: Any, names: Sequence[str], plugins: Sequence[str]) -> dict[str, RewardExpert]:
    """The experts `names` of a ``rewards`` config (node or plain).

    Raises:
        UserError: for an expert that cannot be made.
    """
    nodes = {name: plain(rewards["experts"][name]) for name in names}
    for name, node in nodes.items():  # all of them before the first one's weights are loaded
        check_part(node, "expert", plugins, f"rewards.experts.{name}")
    return {name: _made(f"rewards.experts.{name}", "expert", node, plugins) for name, node in nodes.items()}


def served_experts(rewards: Mapping[str, Any], plugins: Sequence[str], device: str) -> LocalExperts:
    """All experts of a plain ``rewards`` config, on `device` where it says nothing else: what a server's worker does.

    Raises:
        UserError: for an expert that cannot be made.
    """
    return LocalExperts(build_experts(rewards, list(rewards["experts"]), plugins), rewards["devices"]).to(device)


def checked_devices(rewards: Any) -> dict[str, str]:
    """``rewards.devices``, each a device that is there.

    Raises:
        UserError: naming the expert, for an expert or device that does not exist.
    """
    devices: dict[str, str] = plain(rewards.devices)
    for name, place in devices.items():
        if name not in rewards.experts:
            raise UserError(f"rewards.devices.{name}: no such expert; there are {', '.join(rewards.experts)}")
        try:
            there = place == OFFLOAD or _exists(torch.device(place))
        except RuntimeError:
            there = False
        if not there:
            raise UserError(
                f"rewards.devices.{name}={place}: no such device on this machine ({torch.cuda.device_count()} GPUs);"
                f" expected cpu, cuda, cuda:<number> or {OFFLOAD}"
            )
    return devices


def _exists(place: torch.device) -> bool:
    if place.type == "cuda":
        return (place.index or 0) < torch.cuda.device_count()
    return place.type == "cpu"


def remote_token(token_file: str | None) -> str | None:
    """The bearer token of a reward server: out of `token_file`, else out of the environment; None without either.

    Raises:
        UserError: for a file that cannot be read, or a token that is too short or no single word.
    """
    where = TOKEN_VARIABLE if token_file is None else token_file
    if token_file is None:
        token = os.environ.get(TOKEN_VARIABLE)
        if token is None:
            return None
    else:
        try:
            token = Path(token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"token_file={token_file}: cannot be read ({error})") from error
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{where}: a token has at least {SHORTEST_TOKEN} letters, digits and signs, no space; make one with"
            " python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def _remote(rewards: Any, names: Sequence[str]) -> RemoteExperts | None:
    """The experts that are served, None if there are none."""
    remote = rewards.remote
    if not names or remote.url is None:
        return None
    token = remote_token(remote.token_file)
    try:
        settings = RemoteSettings(remote.url, remote.timeout, remote.retries, remote.backoff, token=token)
        experts = RemoteExperts(settings, names)
    except ValueError as error:
        raise UserError(str(error)) from error
    except RewardError as error:
        raise UserError(f"rewards.remote.url={remote.url}: {error.problem}") from error
    if token is not None and settings.parts.scheme == "http" and not is_loopback(settings.parts.hostname or ""):
        warnings.warn(
            f"rewards.remote.url={remote.url}: the token travels readable; use https or a tunnel", stacklevel=2
        )
    for name in names:
        here, there = plain(rewards.experts[name]), experts.settings_there.get(name)
        if here != there:
            warnings.warn(
                f"rewards.experts.{name}: the server made it with {there}, this run says {here}; the server's count",
                stacklevel=2,
            )
    return experts


def build_algorithm(config: DictConfig) -> algorithms.Algorithm:
    """The algorithm variant, checked against the rest of the config."""
    variant = config.algorithm
    try:
        algorithm = algorithms.load(variant.name)
        algorithms.check_settings(algorithm, typed(config).algorithm, config.rollout.max_plan_tokens)
    except ValueError as error:
        raise UserError(str(error)) from error
    return algorithm


def build_operations(config: DictConfig) -> Operations:
    """The kernels' backend."""
    try:
        return operations(config.kernels, device(config))
    except BackendUnavailable as error:
        raise UserError(str(error)) from error


def engine_settings(config: DictConfig) -> EngineSettings:
    """How rollouts are computed; a config without a rollout (another entry point's) takes the defaults.

    Raises:
        UserError: for a CUDA graph where there is no GPU.
    """
    rollout, kernels = config.get("rollout"), config.get("kernels", "auto")
    if rollout is None:
        return EngineSettings(kernels=kernels)
    graph = None if rollout.graph == "auto" else rollout.graph
    if graph and device(config).type != "cuda":
        raise UserError("rollout.graph=true: CUDA graphs need a GPU, this run is on the CPU; set it to auto or false")
    return EngineSettings(kernels=kernels, graph=graph)


def evaluation_settings(config: DictConfig) -> EvaluationSettings:
    """How evaluations sample: as training does, with their own seed."""
    return EvaluationSettings(
        RolloutSettings.of(config.rollout),
        config.evaluation.seed,
        config.evaluation.samples_per_prompt,
        config.evaluation.batch_size,
    )


def build_module(config: DictConfig, policy: Policy, rewards: RewardEnsemble, cut: StepCut) -> BiCoTModule:
    """The LightningModule of a training run.

    Raises:
        UserError: for a reference that shall move along, or activations that shall be computed again, with a
            policy that cannot do so.
    """
    variant = config.algorithm
    if cut.activation_checkpointing:
        if not isinstance(policy, RecomputesActivations):
            raise UserError(
                f"optim.activation_checkpointing={config.optim.activation_checkpointing}: {type(policy).__name__} has"
                " no checkpoint_activations(); set it to false, or give the policy what RecomputesActivations asks for"
            )
        policy.checkpoint_activations()
    if variant.reference_refresh is not None and not isinstance(policy, RefreshableReference):
        raise UserError(
            f"algorithm.reference_refresh={variant.reference_refresh}: {type(policy).__name__} has no"
            " refresh_reference(); set it to null, or give the policy what RefreshableReference asks for"
        )
    return BiCoTModule(typed(config), policy, rewards, build_operations(config), build_algorithm(config), cut)


def _made(key: str, slot: str, node: Any, plugins: Sequence[str], **extra: Any) -> Any:
    """Build a part of `slot` with its settings and `extra`; what goes wrong is told as the user's input at `key`."""
    given = plain(node)
    if hidden := masked_keys(given, key):
        raise UserError(
            f"{hidden[0]}={MASK}: a run folder keeps no secrets; give it on the command line, or this part of the"
            " config with ${oc.env:NAME} in its place"
        )
    try:
        make, settings = factory(given, slot, plugins, key)
        return make(**{**settings, **extra})
    except (ValueError, TypeError, OSError, ImportError, AttributeError) as error:
        raise UserError(f"{key}: {error}") from error
