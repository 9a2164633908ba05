"""Public implementations that sample images from a Janus, unchanged: the same contexts, guidance and number of tokens.

Neither keeps log-probs of what it samples, which a trainer needs: that work is left out to their advantage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from src.values import TokenContext

Loop = Callable[[], Tensor]


@torch.no_grad()
def released_loop(
    janus: Any, context: TokenContext, unconditional: TokenContext, tokens: int, guidance_scale: float
) -> Tensor:
    """Image tokens (N, tokens) by a loop like that of the released T2I-R1 code, rewritten.

    A growing (dynamic) cache, eager modules, both branches as interleaved rows of one batch, softmax and multinomial.
    """
    from transformers import DynamicCache

    trunk, embed = janus.model.language_model, janus.get_input_embeddings()
    rows = len(context)
    inputs = torch.stack([embed(context.ids), embed(unconditional.ids)], dim=1).flatten(0, 1)
    mask = torch.stack([context.mask, unconditional.mask], dim=1).flatten(0, 1).long()
    cache = DynamicCache(config=janus.config.text_config)
    drawn = torch.empty((rows, tokens), dtype=torch.int64, device=context.ids.device)
    for place in range(tokens):
        hidden = trunk(inputs_embeds=inputs, attention_mask=mask, past_key_values=cache, use_cache=True)
        logits = janus.model.generation_head(hidden.last_hidden_state[:, -1])
        conditional, free = logits[0::2], logits[1::2]
        probabilities = torch.softmax(free + guidance_scale * (conditional - free), dim=-1)
        token = torch.multinomial(probabilities, 1)
        drawn[:, place] = token[:, 0]
        inputs = janus.prepare_embeddings_for_image_generation(token.repeat_interleave(2, 0))
        mask = torch.cat([mask, mask.new_ones((2 * rows, 1))], dim=1)
    return drawn


@torch.no_grad()
def transformers_generate(janus: Any, context: TokenContext, guidance_scale: float) -> Tensor:
    """Image tokens (N, K) by transformers' own ``generate``: static cache, SDPA."""
    return janus.generate(
        context.ids,
        attention_mask=context.mask.long(),
        generation_mode="image",
        do_sample=True,
        guidance_scale=guidance_scale,
        temperature=1.0,
        top_k=0,
    )


def compiled_generate(janus: Any, context: TokenContext, guidance_scale: float, mode: str | None) -> Loop:
    """`transformers_generate` with its trunk compiled (`mode` is torch.compile's), undone after every call."""
    trunk = janus.model.language_model
    plain = trunk.forward
    compiled = torch.compile(plain, mode=mode)

    def run() -> Tensor:
        trunk.forward = compiled
        try:
            return transformers_generate(janus, context, guidance_scale)
        finally:
            trunk.forward = plain

    return run
