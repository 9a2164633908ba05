"""Image rollouts timed: ours by size and number, without each optimisation in turn, and public implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch

from src.benchmark.clock import Timed, in_turn
from src.benchmark.models import LENGTHS, image_contexts
from src.benchmark.peers import compiled_generate, released_loop, transformers_generate
from src.benchmark.rows import OURS, Row, failure
from src.policies.base import EngineSettings
from src.policies.janus import JanusPolicy
from src.rollout.decode import decode
from src.rollout.noise import group_keys, uniforms
from src.training.out_of_memory import release_memory
from src.values import IMAGE, Sampling, TokenLevel

GUIDANCE = 5.0
# torch.compile's modes for the peer, of which the best counts.
COMPILE_MODES = ("default", "reduce-overhead")


class Bench:
    """One model and how its rollouts are counted."""

    def __init__(
        self, size: str, policy: JanusPolicy, copy_bandwidth: float, limit_bandwidth: float, rounds: int
    ) -> None:
        self.size, self.policy, self.rounds = size, policy, rounds
        self.copy_bandwidth, self.limit_bandwidth = copy_bandwidth, limit_bandwidth
        self.device, self.lengths, self.tokens = policy.device, LENGTHS[size], policy.image_tokens

    def images(self, number: int, group_size: int = 8) -> TokenLevel:
        """Roll out `number` images under guidance with the policy's engine as it is set."""
        context = image_contexts(self.policy, number, group_size, self.lengths)
        keys = group_keys(0, "benchmark", 0, range(-(-number // group_size)), group_size)[:number]
        noise = uniforms(keys, IMAGE, self.tokens)
        sampling = Sampling(guidance_scale=GUIDANCE)
        return decode(
            self.policy.decoder(), IMAGE, context, noise, sampling, unconditional=self.policy.unconditional(context)
        )

    def step_bytes(self, number: int) -> float:
        """Bytes an image-token step must read at least: weights once, and the filled cache at half of the tokens."""
        janus = self.policy.janus
        trunk, config = janus.model.language_model, janus.config.text_config
        weights = sum(p.numel() * p.element_size() for p in trunk.layers.parameters())
        weights += sum(p.numel() * p.element_size() for p in janus.model.generation_head.parameters())
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        element = janus.lm_head.weight.element_size()
        place = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * element
        context = self.lengths.prompt + self.lengths.plan
        return weights + 2 * number * place * (context + self.tokens / 2)

    def row(self, section: str, number: int, what: str, timed: Timed, name: str, note: str = "") -> Row:
        """The row of a timed rollout of `number` images."""
        if name in timed.failed:
            return failure(section, self.size, number, what, timed.failed[name])
        seconds = timed.seconds[name]
        least = self.step_bytes(number)
        return Row(
            section,
            self.size,
            number,
            what,
            seconds.median,
            seconds.low,
            seconds.high,
            ms_per_token=1e3 * seconds.median / self.tokens,
            images_per_second=number / seconds.median,
            limit_ms=1e3 * least / self.limit_bandwidth,
            bandwidth_share=least * self.tokens / seconds.median / self.copy_bandwidth,
            peak_gib=seconds.peak_bytes / 2**30 or None,
            note=note,
        )


def image_steps(bench: Bench, numbers: Sequence[int], section: str = "image_step") -> list[Row]:
    """Ours at each number of images."""
    works: dict[str, Callable[[], Any]] = {str(number): partial(bench.images, number) for number in numbers}
    timed = in_turn(works, bench.rounds, bench.device)
    return [bench.row(section, number, OURS, timed, str(number)) for number in numbers]


def ablation(bench: Bench, number: int) -> list[Row]:
    """Each optimisation of the engine switched off alone."""
    full: EngineSettings = bench.policy.engine  # type: ignore[assignment]

    def with_engine(engine: EngineSettings) -> Callable[[], Any]:
        def run() -> None:
            bench.policy.engine = engine  # type: ignore[assignment]
            bench.images(number)

        return run

    variants = {OURS: full}
    for name in (item.name for item in fields(EngineSettings)):
        if isinstance(getattr(full, name), bool) or name == "graph":
            switched_off: dict[str, Any] = {name: False}
            variants[f"without {name}"] = replace(full, **switched_off)
    try:
        timed = in_turn({name: with_engine(e) for name, e in variants.items()}, bench.rounds, bench.device)
    finally:
        bench.policy.engine = full  # type: ignore[assignment]
    return beside_ours([bench.row("ablation", number, name, timed, name) for name in variants])


def peers(bench: Bench, number: int, compile_: bool) -> list[Row]:
    """Ours, a loop as the released code's, and transformers' own, plain and compiled; the adapter on in all."""
    policy = bench.policy
    context = image_contexts(policy, number, 8, bench.lengths)
    unconditional = policy.unconditional(context)
    works: dict[str, Callable[[], Any]] = {
        OURS: partial(bench.images, number),
        "T2I-R1's loop": partial(released_loop, policy.janus, context, unconditional, bench.tokens, GUIDANCE),
        "transformers generate": partial(transformers_generate, policy.janus, context, GUIDANCE),
    }
    if compile_:
        for mode in COMPILE_MODES:
            name = f"transformers generate, compiled ({mode})"
            works[name] = compiled_generate(policy.janus, context, GUIDANCE, None if mode == "default" else mode)
    timed = in_turn(works, bench.rounds, bench.device)
    return beside_ours([bench.row("peers", number, name, timed, name) for name in works])


def beside_ours(rows: Sequence[Row]) -> list[Row]:
    """The rows with `ours_is`: their seconds over ours."""
    ours = next((row.seconds for row in rows if row.what == OURS and row.seconds), None)
    if ours is None:
        return list(rows)
    return [row if row.seconds is None else replace(row, ours_is=row.seconds / ours) for row in rows]


def release(bench: Bench) -> None:
    """Give back what a part leaves behind, the cache and compiled peers' graphs: the next one's peak is its own."""
    bench.policy.release_cache()
    torch.compiler.reset()
    release_memory()
