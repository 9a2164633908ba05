"""A plain sampler of plans and pictures for measuring a checkpoint here, independent of `src.rollout`.

Training and evaluation of the project sample through `src.rollout`; this one stays small and obvious so
that the recipe depends on nothing that is trained or tuned later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, JanusForConditionalGeneration, PreTrainedTokenizerFast

from src.policies.contexts import encode_image_context, encode_plan_context, unconditional_context
from src.shapes.tokens import BOI
from src.values import TokenContext

MAX_PLAN_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Drawn:
    """N samples: plan texts, whether each plan ended, image tokens (N, T), pixels (N, 3, H, H) in [0, 1]."""

    plans: list[str]
    ended: Tensor
    image_tokens: Tensor
    pixels: Tensor


def positions(mask: Tensor) -> Tensor:
    """Position ids (N, C) of left-padded rows: the first real token is 0."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


class _Decoder:
    """The language model, one token further at each call, over rows that share a left-padded context."""

    def __init__(self, model: JanusForConditionalGeneration, context: TokenContext) -> None:
        self.model, self.mask = model, context.mask.long()
        self.cache = DynamicCache()
        self.next = positions(context.mask)
        self.embeddings = model.get_input_embeddings()(context.ids)

    def hidden(self) -> Tensor:
        """Last hidden states (N, F) of what was fed so far."""
        output = self.model.model.language_model(
            inputs_embeds=self.embeddings,
            attention_mask=self.mask,
            position_ids=self.next,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def feed(self, embeddings: Tensor) -> None:
        """Append one token's embeddings (N, F)."""
        self.embeddings = embeddings[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.next = self.next[:, -1:] + 1


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    probabilities = (logits / temperature).softmax(-1)
    # Drawn on the generator's device, the CPU: the same numbers from the same seed wherever the model runs.
    return torch.multinomial(probabilities.to(generator.device), 1, generator=generator).squeeze(1).to(logits.device)


@torch.no_grad()
def sample_plans(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    temperature: float,
    generator: torch.Generator,
) -> tuple[list[str], Tensor]:
    """Plan texts, and (N,) bool whether each ended within `MAX_PLAN_TOKENS`."""
    decoder = _Decoder(model, encode_plan_context(tokenizer, prompts, model.device))
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    tokens = []
    for _ in range(MAX_PLAN_TOKENS):
        token = _draw(model.lm_head(decoder.hidden()), temperature, generator)
        tokens.append(torch.where(ended, tokenizer.pad_token_id, token))
        ended |= token == tokenizer.eos_token_id
        if ended.all():
            break
        decoder.feed(model.get_input_embeddings()(token))
    return tokenizer.batch_decode(torch.stack(tokens, 1).tolist(), skip_special_tokens=True), ended


@torch.no_grad()
def sample_pictures(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    plans: Sequence[str],
    temperature: float,
    guidance_scale: float,
    generator: torch.Generator,
) -> Tensor:
    """Image tokens (N, T) under guidance ``u + w * (c - u)``."""
    begin = tokenizer.convert_tokens_to_ids(BOI)
    context = encode_image_context(tokenizer, prompts, plans, begin, model.device)
    free = unconditional_context(context, tokenizer.pad_token_id)
    both = TokenContext(torch.cat([context.ids, free.ids]), torch.cat([context.mask, free.mask]))
    decoder = _Decoder(model, both)
    tokens = []
    for _ in range(model.model.vqmodel.config.num_patches**2):
        conditional, unconditional = model.model.generation_head(decoder.hidden()).chunk(2)
        logits = unconditional + guidance_scale * (conditional - unconditional)
        token = _draw(logits, temperature, generator)
        tokens.append(token)
        decoder.feed(model.prepare_embeddings_for_image_generation(torch.cat([token, token])))
    return torch.stack(tokens, 1)


@torch.no_grad()
def draw(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    generator: torch.Generator,
    temperature: float = 1.0,
    guidance_scale: float = 1.5,
) -> Drawn:
    """Plan, then picture, at one temperature for both levels."""
    plans, ended = sample_plans(model, tokenizer, prompts, temperature, generator)
    tokens = sample_pictures(model, tokenizer, prompts, plans, temperature, guidance_scale, generator)
    pixels = ((model.decode_image_tokens(tokens) + 1) / 2).clamp(0, 1).permute(0, 3, 1, 2)
    return Drawn(plans, ended, tokens, pixels)
