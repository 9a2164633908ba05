"""The two levels of a rollout: plan each prompt in words, then paint prompt and plan token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from src.config.schema import RolloutConfig
from src.policies.base import Decoder, Policy
from src.rollout.decode import decode
from src.rollout.noise import RolloutKey, uniforms
from src.runs.phases import phase
from src.values import IMAGE, PLAN, Sampling, TokenLevel


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How rollouts are sampled; `max_plan_tokens` counts the end token.

    max_rows: rollouts decoded at once, which changes their rounding alone: no token in float32, tokens in bf16. 1: each
    alone, so that no bit depends on the others. None: what the device has memory for.
    """

    plan: Sampling
    image: Sampling
    max_plan_tokens: int
    max_rows: int | None = None

    @classmethod
    def of(cls, rollout: RolloutConfig) -> RolloutSettings:
        """How a run samples."""
        plan, image = rollout.plan, rollout.image
        return cls(
            plan=Sampling(plan.temperature, top_k=plan.top_k, top_p=plan.top_p),
            image=Sampling(image.temperature, rollout.guidance_scale, image.top_k, image.top_p),
            max_plan_tokens=rollout.max_plan_tokens,
            max_rows=rollout.max_rows,
        )


@dataclass(frozen=True, slots=True)
class Rollouts:
    """N rollouts: both levels, the plans as text, pixels (N, 3, H, W) in [0, 1], and which plans ended (N,) bool."""

    levels: dict[str, TokenLevel]
    plans: list[str]
    pixels: Tensor
    ended: Tensor


def roll_out(
    policy: Policy,
    decoder: Decoder,
    prompts: Sequence[str],
    keys: Sequence[RolloutKey],
    settings: RolloutSettings,
) -> Rollouts:
    """One rollout a prompt; give a prompt G times (with G keys) for a group.

    The plan goes from tokens to text and back into the image level's context: the two levels have
    separate contexts, as in the paper.
    """
    with phase("rolling out plans"):
        plan = sample_plans(policy, decoder, prompts, keys, settings)
        plans = policy.read_plans(plan.ids, plan.mask)
    with phase("rolling out images"):
        image = sample_images(policy, decoder, prompts, plans, keys, settings)
    ended = (plan.ids.eq(policy.end_id) & plan.mask).any(1)
    return Rollouts({PLAN: plan, IMAGE: image}, plans, policy.paint(image.ids), ended)


def sample_plans(
    policy: Policy, decoder: Decoder, prompts: Sequence[str], keys: Sequence[RolloutKey], settings: RolloutSettings
) -> TokenLevel:
    """The plan level of `roll_out`."""
    context = policy.plan_context(prompts)
    noise = uniforms(keys, PLAN, settings.max_plan_tokens)
    return decode(decoder, PLAN, context, noise, settings.plan, end_id=policy.end_id, max_rows=settings.max_rows)


def sample_images(
    policy: Policy,
    decoder: Decoder,
    prompts: Sequence[str],
    plans: Sequence[str],
    keys: Sequence[RolloutKey],
    settings: RolloutSettings,
) -> TokenLevel:
    """The image level of `roll_out`."""
    context = policy.image_context(prompts, plans)
    noise = uniforms(keys, IMAGE, policy.image_tokens)
    unconditional = policy.unconditional(context) if settings.image.guided else None
    return decode(decoder, IMAGE, context, noise, settings.image, unconditional, max_rows=settings.max_rows)
