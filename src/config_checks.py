"""The checks of a composed config that types cannot make: unknown keys and ranges, key by key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

from omegaconf import OmegaConf

from src.allowed_targets import check_targets
from src.config import GROUP_SCHEMAS, UserError
from src.config_entries import ROOT_SCHEMAS
from src.masking import learn

Check = tuple[Callable[[Any], bool], str]  # does the value hold, and what was expected

_POSITIVE: Check = (lambda v: v > 0, "a number > 0")
_NOT_NEGATIVE: Check = (lambda v: v >= 0, "a number >= 0")
_AT_LEAST_ONE: Check = (lambda v: v >= 1, "an integer >= 1")
_MASS: Check = (lambda v: 0 < v <= 1, "a share above 0 and up to 1, or null for no truncation")
_UP_TO_ONE: Check = (lambda v: 0 <= v <= 1, "a number in [0, 1]")
_SHARE: Check = (
    lambda v: v > 0,
    "a number > 0; to train one level only set algorithm.level_weights, the KL then stays",
)


def _one_of(*choices: str) -> Check:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def _is_file_name(text: str) -> bool:
    return text not in ("", ".", "..") and not set(text) & set("/\\\0") and len(text.encode(errors="replace")) <= 200


CHECKS: dict[str, Check] = {
    "run.name": (_is_file_name, "the name of a folder: no slash, at most 200 bytes (run.dir takes a path)"),
    "run.seed": _NOT_NEGATIVE,
    "rollout.group_size": (lambda v: v >= 2, "an integer >= 2 (a group is compared within itself)"),
    "rollout.prompts_per_step": _AT_LEAST_ONE,
    "rollout.guidance_scale": (lambda v: v >= 1, "a number >= 1 (1 is no guidance)"),
    "rollout.max_plan_tokens": _AT_LEAST_ONE,
    "rollout.max_rows": _AT_LEAST_ONE,
    "rollout.graph": (lambda v: v == "auto" or isinstance(v, bool), "one of auto, true, false"),
    "rollout.plan.temperature": _POSITIVE,
    "rollout.image.temperature": _POSITIVE,
    "rollout.plan.top_k": _AT_LEAST_ONE,
    "rollout.plan.top_p": _MASS,
    "rollout.image.top_k": _AT_LEAST_ONE,
    "rollout.image.top_p": _MASS,
    "algorithm.beta": _NOT_NEGATIVE,
    "algorithm.kl": _one_of("k1", "k2", "k3", "exact"),
    "algorithm.kl_in": _one_of("loss", "reward"),
    "algorithm.reference_refresh": _AT_LEAST_ONE,
    "algorithm.logp": _one_of("guided", "conditional"),
    "algorithm.clip_low": (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    "algorithm.clip_high": _NOT_NEGATIVE,
    "algorithm.updates_per_rollout": _AT_LEAST_ONE,
    "algorithm.level_weights.plan": _NOT_NEGATIVE,
    "algorithm.level_weights.image": _NOT_NEGATIVE,
    "algorithm.level_shares.plan": _SHARE,
    "algorithm.level_shares.image": _SHARE,
    "algorithm.entropy_bonus.plan": _NOT_NEGATIVE,
    "algorithm.entropy_bonus.image": _NOT_NEGATIVE,
    "algorithm.entropy_target.plan": _NOT_NEGATIVE,
    "algorithm.entropy_target.image": _NOT_NEGATIVE,
    "algorithm.entropy_step": _POSITIVE,
    "algorithm.entropy_maximum": _POSITIVE,
    "algorithm.correction_cap": (lambda v: v > 1, "a number > 1, or null for no correction"),
    "algorithm.unfinished_plan_penalty": _NOT_NEGATIVE,
    "algorithm.overlong_penalty": _NOT_NEGATIVE,
    "algorithm.overlong_margin": _AT_LEAST_ONE,
    "algorithm.penalties_on": _one_of("both", "plan"),
    "algorithm.max_refills": _NOT_NEGATIVE,
    "algorithm.signal_tolerance": _NOT_NEGATIVE,
    "logger.system_metrics_every": _POSITIVE,
    "optim.lr": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.warmup_steps": _NOT_NEGATIVE,
    "optim.schedule": _one_of("constant", "linear", "cosine"),
    "optim.final_lr_fraction": (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    "optim.grad_clip": _POSITIVE,
    "optim.max_grad_norm": _POSITIVE,
    "optim.max_skipped_steps": _NOT_NEGATIVE,
    "optim.microbatch": _AT_LEAST_ONE,
    "optim.activation_checkpointing": (
        lambda v: isinstance(v, bool) or v == "auto",
        "auto, true or false",
    ),
    "optim.betas": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two numbers in [0, 1)"),
    "trainer.max_steps": _AT_LEAST_ONE,
    "trainer.num_nodes": _AT_LEAST_ONE,
    "trainer.precision": _one_of("auto", "32-true", "bf16-mixed"),
    "evaluation.every": _AT_LEAST_ONE,
    "evaluation.batch_size": _AT_LEAST_ONE,
    "evaluation.validation_prompts": _AT_LEAST_ONE,
    "evaluation.test_prompts": _AT_LEAST_ONE,
    "evaluation.samples_per_prompt": _AT_LEAST_ONE,
    "evaluation.picture_prompts": _AT_LEAST_ONE,
    "checkpoint.every": _AT_LEAST_ONE,
    "checkpoint.rollouts_every": _AT_LEAST_ONE,
    "watchdog.seconds": _POSITIVE,
    "watchdog.rank_seconds": (lambda v: v >= 5, "a number >= 5 (a busy machine needs that much)"),
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "model.lora.r": _AT_LEAST_ONE,
    "model.lora.alpha": _POSITIVE,
    "model.lora.dropout": (lambda v: v == 0, "0 (with dropout the first update's ratio would not be 1)"),
    "model.lora.targets": (lambda v: len(v) > 0, "at least one projection"),
    "data.on_error": _one_of("raise", "skip"),
    "data.held_out": (lambda v: 0 < v < 0.5, "a share above 0 and below 0.5"),
    "rewards.combine": _one_of("sum", "mean", "min", "product"),
    "rewards.on_error": _one_of("raise", "drop"),
    "rewards.remote.timeout": _POSITIVE,
    "rewards.remote.retries": _NOT_NEGATIVE,
    "rewards.remote.backoff": _POSITIVE,
    "rewards.watch.window": (lambda v: v >= 10, "an integer >= 10 (a trend needs points)"),
    "rewards.watch.threshold": _POSITIVE,
    "kernels": _one_of("auto", "triton", "torch"),
    # evaluate
    "max_prompts": _AT_LEAST_ONE,
    "kinds": (lambda v: len(v) > 0, "at least one kind of prompt, or null for all"),
    "resamples": (lambda v: v >= 100, "an integer >= 100 (the ends of an interval are read off so many)"),
    "picture_prompts": _NOT_NEGATIVE,
    # compare
    "mode": _one_of("max", "min"),
    # score_geneval
    "threshold": _UP_TO_ONE,
    "counting_threshold": _UP_TO_ONE,
    "max_objects": _AT_LEAST_ONE,
    "max_overlap": (lambda v: 0 < v <= 1, "a share above 0 and up to 1 (1 is no suppression)"),
    "position_threshold": _NOT_NEGATIVE,
    "samples": _AT_LEAST_ONE,
    # generate, evaluate, benchmark_images, export, benchmark
    # counts of benchmark; score_geneval has a folder under this name
    "images": (lambda v: isinstance(v, str) or (len(v) > 0 and min(v) >= 1), "at least one integer >= 1"),
    "scaling": (lambda v: len(v) > 0 and min(v) >= 1, "at least one integer >= 1"),
    "rounds": _AT_LEAST_ONE,
    "group_size": _AT_LEAST_ONE,
    "memory_gib": _POSITIVE,
    "sampling.guidance_scale": (lambda v: v >= 1, "a number >= 1 (1 is no guidance)"),
    "sampling.max_plan_tokens": _AT_LEAST_ONE,
    "sampling.plan_temperature": _POSITIVE,
    "sampling.image_temperature": _POSITIVE,
    "sampling.plan_top_k": _AT_LEAST_ONE,
    "sampling.plan_top_p": _MASS,
    "sampling.image_top_k": _AT_LEAST_ONE,
    "sampling.image_top_p": _MASS,
    "temperature": _POSITIVE,
    "top_k": _AT_LEAST_ONE,
    "top_p": _MASS,
    "guidance_scale": (lambda v: v >= 1, "a number >= 1 (1 is no guidance)"),
    "max_plan_tokens": _AT_LEAST_ONE,
    "n": _AT_LEAST_ONE,
    "best_of": _AT_LEAST_ONE,
    "paint_every": _AT_LEAST_ONE,
    "seed": _NOT_NEGATIVE,
    "batch_size": _AT_LEAST_ONE,
    "dtype": _one_of("auto", "float32", "bfloat16"),
    "layout": _one_of("transformers", "original"),
    # serve_rewards
    "host": _one_of("127.0.0.1", "0.0.0.0", "::"),  # noqa: S104 (checked, not bound)
    "port": (lambda v: 1024 <= v <= 65535, "an integer in [1024, 65535]"),
    "accelerator": _one_of("auto", "cpu", "cuda", "mps"),
    "workers": _AT_LEAST_ONE,
    "max_batch": _AT_LEAST_ONE,
    "batch_timeout": _POSITIVE,
    "timeout": _POSITIVE,
    "max_images": _AT_LEAST_ONE,
    "max_pixels": _AT_LEAST_ONE,
    "max_bytes": _AT_LEAST_ONE,
    "max_picture_pixels": _AT_LEAST_ONE,
    "log_level": _one_of("critical", "error", "warning", "info", "debug"),
}


def _refuse_unknown(node: Any, schema: type, prefix: str) -> None:
    """Raise UserError for keys outside of the schema, which Hydra's ``+key=value`` adds past every type, and for those
    that ``~key`` took out.
    """
    known = {item.name: item for item in fields(schema)}
    if missing := [name for name in known if name not in node.keys()]:  # noqa: SIM118 (`in` passes over null)
        raise UserError(f"{prefix}{missing[0]}: was taken out; set it to another value, ~ is for what a dict holds")
    for key in node:
        if key == "hydra" and not prefix:
            continue
        if key not in known:
            raise UserError(f"{prefix}{key}: no such key; there are {', '.join(known)}")
        default = known[key].default_factory
        if isinstance(default, type) and is_dataclass(default) and OmegaConf.is_config(node[key]):
            _refuse_unknown(node[key], default, f"{prefix}{key}.")


def validate(config: Any, root: str = "config") -> None:
    """Check that the root config `root` has no key but its schema's, every target, and every range in CHECKS.

    Raises:
        UserError: naming key, value and what is expected, for the first value out of range; for a ``_target_`` that
            may not be called (`src.allowed_targets`).
    """
    _refuse_unknown(config, ROOT_SCHEMAS[root], "")
    for group, schema in GROUP_SCHEMAS.items():
        node = config.get(group) if group in config else None
        # A part behind a target of its own brings its own keys.
        if node is not None and OmegaConf.is_config(node) and node.get("_target_") == getattr(schema, "_target_", None):
            _refuse_unknown(node, schema, f"{group}.")
    plain = OmegaConf.to_container(config, resolve=True)
    learn(plain)
    check_targets(plain, list(config.get("plugins") or ()))
    for key, (holds, expected) in CHECKS.items():
        value = OmegaConf.select(config, key, default=None)
        if value is None:
            continue
        if (isinstance(value, float) and not isfinite(value)) or not holds(value):
            raise UserError(f"{key}={value}: expected {expected}")
