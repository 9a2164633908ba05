"""One check after a model is loaded: rollout, training and reference give the log-probs of the modules' own forward.

Each applies weights and adapters in its own form, and nothing else in a run compares them with the given model:
the `mismatch` metric sees sampler and training differ from each other, not both from the adapter, nor the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from src.policies.base import Decoder
from src.policies.janus import JanusPolicy
from src.values import IMAGE, PLAN, Sampling, TokenContext, TokenLevel

# Root mean square difference of two paths' log-probs, as a share of the log-probs' spread over the vocabulary.
# What rounding gives, measured: float32 (unit roundoff 6e-8) 8e-7 in the embedded model, 6e-5 in one whose 30 random
# layers amplify every rounding; bfloat16 (4e-3) 0.008 and 0.044. Spreads are 2 to 7 nats, so float32 is held to
# 1e-3 nats at most and bfloat16 to 0.2 to 0.7: there an adapter that changes less than that is not seen here.
BOUNDS = {torch.float64: 1.5e-4, torch.float32: 1.5e-4, torch.bfloat16: 0.1}
CONTEXT, TOKENS = 7, 4

TrainingContext = Callable[[], AbstractContextManager[Any]]


class Disagreement(ValueError):
    """A path through a loaded model differs from the model's own modules; the message names it."""


@torch.no_grad()
def check_agreement(policy: JanusPolicy, given: str, training: TrainingContext = nullcontext) -> None:
    """Compare training, rollout and reference with the modules' own forward, on a few fixed tokens of both levels.

    Four short forward passes a level, on the policy's device; the cache it used is freed. If weights are sharded over
    ranks, all ranks must call it. given: what was loaded, for the message. training: what a training pass runs
    under (mixed precision).

    Raises:
        Disagreement: for a difference that rounding does not explain, or log-probs that are not finite.
    """
    for level in (PLAN, IMAGE):
        janus = policy.decoding_janus
        context, ids = fixed_tokens(janus, level)
        own = module_logps(janus, level, context, ids)
        with training():
            trained = _training_logps(policy, level, context, ids)
        _hold(own, trained, janus, f"{given}: training", level)
        _hold(own, decoded_logps(policy.decoder(), level, context, ids), janus, f"{given}: the rollout", level)
        with policy.reference_janus() as reference:
            own = module_logps(reference, level, context, ids)
        with policy.reference() as decoder:
            _hold(own, decoded_logps(decoder, level, context, ids), janus, f"{given}: the reference", level)
    policy.release_cache()


@torch.no_grad()
def check_decoder(decoder: Decoder, janus: Any, given: str) -> None:
    """Compare a decoder with the forward of `janus`, the transformers model it decodes for; see `check_agreement`."""
    for level in (PLAN, IMAGE):
        context, ids = fixed_tokens(janus, level)
        own = module_logps(janus, level, context, ids)
        _hold(own, decoded_logps(decoder, level, context, ids), janus, f"{given}: the rollout", level)


@torch.no_grad()
def fixed_logps(janus: Any) -> dict[str, Tensor]:
    """Log-probs (N, T, V) of the fixed tokens of each level by the own forward of `janus`."""
    return {level: module_logps(janus, level, *fixed_tokens(janus, level)) for level in (PLAN, IMAGE)}


def check_merged(before: dict[str, Tensor], merged: Any, given: str) -> None:
    """Compare a model with merged adapter to the `fixed_logps` of the unmerged one."""
    for level, logps in fixed_logps(merged).items():
        _hold(before[level], logps, merged, f"{given}: the merged model", level)


def fixed_tokens(janus: Any, level: str) -> tuple[TokenContext, Tensor]:
    """Two contexts (2, C) of different lengths and tokens (2, T) of a level, spread over its vocabulary."""
    device = janus.lm_head.weight.device
    words = janus.get_input_embeddings().weight.shape[0]
    kinds = words if level == PLAN else janus.model.generation_embeddings.weight.shape[0]
    context: Tensor = torch.arange(2 * CONTEXT, device=device).view(2, CONTEXT)
    tokens: Tensor = torch.arange(2 * TOKENS, device=device).view(2, TOKENS)
    mask = torch.ones_like(context, dtype=torch.bool)
    mask[0, :3] = False
    return TokenContext((context * 7919 + 11) % words, mask), (tokens * 6007 + 5) % kinds


def module_logps(janus: Any, level: str, context: TokenContext, ids: Tensor) -> Tensor:
    """Log-probs (N, T, V) float32 through the modules as transformers and PEFT call them, one row at a time."""
    text, rows = janus.get_input_embeddings(), []
    for prompt, keep, row in zip(context.ids, context.mask, ids, strict=True):
        before = row[:-1]
        generated = text(before) if level == PLAN else janus.prepare_embeddings_for_image_generation(before)
        embedded = torch.cat([text(prompt[keep]), generated])[None]
        hidden = janus.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
        read = hidden[-len(row) :]
        rows.append(janus.lm_head(read) if level == PLAN else janus.model.generation_head(read))
    return torch.stack(rows).float().log_softmax(-1)


def decoded_logps(decoder: Decoder, level: str, context: TokenContext, ids: Tensor) -> Tensor:
    """The same by a decoder, token by token as a rollout goes."""
    state, features = decoder.start(level, context, ids.shape[1])
    found = [features]
    for column in ids[:, :-1].unbind(1):
        # A captured step always writes its features to the same place, so a copy is kept.
        found.append(decoder.advance(state, column).clone())
    if hasattr(decoder, "finish"):
        decoder.finish(state)
    return decoder.head(level)(torch.stack(found, dim=1)).float().log_softmax(-1)


def _training_logps(policy: JanusPolicy, level: str, context: TokenContext, ids: Tensor) -> Tensor:
    """The same by the pass that training makes."""
    nothing = torch.zeros(ids.shape, device=ids.device)
    everything = torch.ones_like(ids, dtype=torch.bool)
    rolled = TokenLevel(context, ids, everything, nothing, nothing, Sampling())
    return policy({level: rolled})[level].logits().float().log_softmax(-1)


def _hold(own: Tensor, found: Tensor, janus: nn.Module, path: str, level: str) -> None:
    """Raise Disagreement unless `found` is `own` up to rounding in the dtypes of `janus`."""
    if not bool(torch.isfinite(own).all()) or not bool(torch.isfinite(found).all()):
        where = next(_not_finite(janus), "no weight by itself; they overflow together")
        raise Disagreement(f"{path}: log-probs of the {level} level are NaN or infinite; at fault: {where}")
    error = float((found - own).square().mean().sqrt())
    spread = float(own.std(dim=-1).mean())
    bound = max(BOUNDS.get(p.dtype, BOUNDS[torch.bfloat16]) for p in janus.parameters()) * max(spread, 0.1)
    if error > bound:
        raise Disagreement(
            f"{path} does not match the model's own modules: log-probs of the {level} level are off by"
            f" {error:.2g} nats (rounding explains {bound:.2g}). Stopped, since what follows would be silently wrong;"
            " please report it with the adapter's or the model's config. Where PEFT can merge the adapter"
            " (merge_and_unload), the merged checkpoint can be given as model.path"
        )


def _not_finite(model: nn.Module) -> Iterator[str]:
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            yield f"{name} contains NaN or infinity"
