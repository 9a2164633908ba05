"""Randomly initialised Janus models of the real sizes, and contexts of realistic length for them.

What is measured depends on sizes alone, so no weights need to be at hand; the tokenizer is the embedded one's, whose
few words are all within the larger vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from src.config.schema import ROOT, LoraConfig
from src.policies.janus import JanusPolicy
from src.values import TokenContext

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration

CHECKPOINT = ROOT / "src" / "shapes" / "checkpoint"
VOCABULARY, CODEBOOK = 102_400, 16_384


@dataclass(frozen=True, slots=True)
class Size:
    """A Janus: hidden width, layers, heads, width of the MLP."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


# deepseek-ai/Janus-Pro-1B and -7B, config.json (language_config; the presets of the generation side are the same).
SIZES = {"1b": Size(2048, 24, 16, 5632), "7b": Size(4096, 30, 32, 11_008)}
TINY = "tiny"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a plan's context, of a prompt in the image's context, and of a plan (random weights never end one)."""

    instruction: int
    prompt: int
    plan: int


LENGTHS = {TINY: Lengths(24, 12, 16), "1b": Lengths(128, 32, 64), "7b": Lengths(128, 32, 64)}


def random_policy(name: str, device: torch.device, dtype: torch.dtype) -> JanusPolicy:
    """A policy of the size `name` ("tiny", "1b", "7b") with LoRA (r 16 on all projections) on random weights."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True, trust_remote_code=False)
    torch.manual_seed(0)
    janus = _tiny() if name == TINY else _of_size(SIZES[name], tokenizer, device, dtype)
    return JanusPolicy(janus.to(device, dtype), tokenizer, LoraConfig()).to(device)


def image_contexts(policy: JanusPolicy, images: int, group_size: int, lengths: Lengths) -> TokenContext:
    """Contexts (N, C) of images: groups share the prompt, every rollout has its own plan, all equally long."""
    ids = torch.cat(
        [_shared(policy, images, group_size, lengths.prompt, 1), _shared(policy, images, 1, lengths.plan, 2)], dim=1
    )
    ids[:, 0], ids[:, -1] = _begin(policy), policy.begin_of_image_id
    return TokenContext(ids, torch.ones_like(ids, dtype=torch.bool))


def plan_contexts(policy: JanusPolicy, images: int, group_size: int, lengths: Lengths) -> TokenContext:
    """Contexts (N, C) of plans, shared within a group."""
    ids = _shared(policy, images, group_size, lengths.instruction, 3)
    ids[:, 0] = _begin(policy)
    return TokenContext(ids, torch.ones_like(ids, dtype=torch.bool))


def _begin(policy: JanusPolicy) -> int:
    return int(policy.tokenizer.bos_token_id)


def _shared(policy: JanusPolicy, images: int, group_size: int, length: int, seed: int) -> torch.Tensor:
    """(images, length) random ids of ordinary tokens, the same within a group."""
    generator = torch.Generator().manual_seed(seed)
    special = set(policy.tokenizer.all_special_ids)
    words = torch.tensor([i for i in range(policy.janus.lm_head.weight.shape[0]) if i not in special])
    groups = -(-images // group_size)
    drawn = words[torch.randint(len(words), (groups, length), generator=generator)]
    return drawn.repeat_interleave(group_size, 0)[:images].to(policy.device)


def _tiny() -> Any:
    from transformers import JanusForConditionalGeneration

    return JanusForConditionalGeneration.from_pretrained(CHECKPOINT, local_files_only=True, tie_word_embeddings=False)


def _of_size(size: Size, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> JanusForConditionalGeneration:
    """Made without weights, then filled on the device: transformers' own initialisation of 7B takes minutes."""
    from transformers import GenerationConfig, JanusForConditionalGeneration

    with torch.device("meta"):
        model = JanusForConditionalGeneration(janus_config(size)).to(dtype)
    model = model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    # Computed at construction and not a parameter, so it came out of `to_empty` without a value.
    rotary = model.model.language_model.rotary_emb
    model.model.language_model.rotary_emb = type(rotary)(config=model.config.text_config, device=device)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(tokenizer.boi_token)},
    )
    return model


def janus_config(size: Size) -> Any:
    """transformers' config of a Janus-Pro of this size."""
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=16_384,
        tie_word_embeddings=False,
    )
    return JanusConfig(
        text_config=text,
        vision_config=JanusVisionConfig(projection_dim=size.hidden),
        vq_config=JanusVQVAEConfig(
            num_embeddings=CODEBOOK, projection_dim=size.hidden, image_token_embed_dim=size.hidden
        ),
        tie_word_embeddings=False,
    )
