"""What the tests hold policies to: transformers' own modules, one unpadded row at a time, one full forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from src.values import IMAGE, TokenContext


def level_logits(janus: Any, level: str, context: TokenContext, ids: Tensor) -> Tensor:
    """Logits (N, T, V) of every token of `ids` (N, T), from `janus.model.language_model` and the model's own heads."""
    rows = []
    for row in range(len(context)):
        prefix = context.ids[row][context.mask[row]]
        text = janus.get_input_embeddings()(prefix)
        before = ids[row, :-1]
        if level == IMAGE:
            generated = janus.prepare_embeddings_for_image_generation(before)
        else:
            generated = janus.get_input_embeddings()(before)
        embeddings = torch.cat([text, generated])[None]
        hidden = janus.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0]
        read = hidden[len(prefix) - 1 :]
        rows.append(janus.model.generation_head(read) if level == IMAGE else janus.lm_head(read))
    return torch.stack(rows)


def level_logps(janus: Any, level: str, context: TokenContext, ids: Tensor) -> Tensor:
    """Log-probs (N, T, V) without graph, in float32, or in float64 of a float64 model."""
    with torch.no_grad():
        return log_softmax(level_logits(janus, level, context, ids))


def log_softmax(logits: Tensor) -> Tensor:
    """Over the last dimension, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def guided_token_logps(
    janus: Any, level: str, context: TokenContext, unconditional: TokenContext, ids: Tensor, scale: float, tau: float
) -> Tensor:
    """Log-probs (N, T) of `ids` under ``softmax((u + w*(c - u)) / tau)``; only c carries a graph."""
    c = level_logits(janus, level, context, ids)
    with torch.no_grad():
        u = level_logits(janus, level, unconditional, ids)
    return ((u + scale * (c - u)) / tau).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
