"""A randomly initialised Janus of the real classes, small enough for any test."""

from __future__ import annotations

from typing import Any

import torch

WORDS = ("a red blue green circle square triangle left right of above below one two and the . ; ->").split()
SPECIAL = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "unk_token": "<unk>",
}
EXTRA = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_placeholder>"}


def tiny_tokenizer() -> Any:
    """A word-level tokenizer with Janus's special tokens and no chat templates of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIAL.values(), *EXTRA.values(), *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL, extra_special_tokens=EXTRA)


def tiny_janus(
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    side: int = 3,
    codes: int = 24,
    vocabulary: int = 64,
    res_blocks: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A `JanusForConditionalGeneration` with side*side image tokens; weights large enough to tell tokens apart."""
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    torch.manual_seed(seed)
    config = JanusConfig(
        text_config=LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=2 * hidden,
            vocab_size=vocabulary,
            max_position_embeddings=1024,
            initializer_range=0.3,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=side * 4,
            patch_size=4,
            projection_dim=hidden,
            num_image_tokens=side * side,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1, 2],
            num_res_blocks=res_blocks,
            num_patches=side,
            projection_dim=hidden,
            image_token_embed_dim=hidden,
        ),
        image_token_id=6,
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.model.generation_head.parameters():
            parameter.normal_(0.0, 0.3)
        model.lm_head.weight.normal_(0.0, 0.3)
        model.model.generation_embeddings.weight.normal_()
    return model.to(dtype).eval()


PLAN_TEMPLATE = "{{ bos_token }} {{ messages[0]['content'] }} ->"
IMAGE_TEMPLATE = "{{ bos_token }} {{ messages[0]['content'] }}{% if plan %} . {{ plan }}{% endif %} ->"


def templated_tokenizer() -> Any:
    """`tiny_tokenizer` with short chat templates of its own, as the embedded checkpoint ships them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"plan": PLAN_TEMPLATE, "image": IMAGE_TEMPLATE}
    return tokenizer


def tiny_policy(
    lora: dict[str, Any] | None = {"r": 4},  # noqa: B006 (read only)
    adapter_scale: float = 0.15,
    merge_rollout: bool | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **sizes: int,
) -> Any:
    """A `JanusPolicy` on `tiny_janus`; its LoRA B matrices are drawn, so that the adapter does something."""
    from src.config.schema import LoraConfig
    from src.policies.janus import JanusPolicy

    janus = tiny_janus(seed=seed, dtype=dtype, **sizes)
    policy = JanusPolicy(
        janus,
        templated_tokenizer(),
        lora=None if lora is None else LoraConfig(**lora),
        merge_rollout=merge_rollout,
    )
    if lora is not None:
        draw_adapter(policy, adapter_scale)
    return policy


def exact_policy(merge_rollout: bool | None = True, **how: Any) -> Any:
    """`tiny_policy` in float64 throughout, for tests that say "nothing changes but rounding".

    In float32 the rounding of a matrix product depends on the processor, the number of threads and the number of
    rows; a bound that holds on one machine fails on the next. Here it is 1e-12, and a fault stands out.
    """
    policy = tiny_policy(merge_rollout=merge_rollout, dtype=torch.float64, **how)
    exact_norms(policy)
    return policy


def exact_norms(model: Any) -> None:
    """Have transformers' RMS norms computed in the dtype of their input; they always take float32 themselves."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class ExactNorm(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)

    for module in model.modules():
        if type(module) is LlamaRMSNorm:
            module.__class__ = ExactNorm


def draw_adapter(policy: Any, scale: float, seed: int = 1) -> None:
    """Random B matrices of all adapters (fresh ones are zero and change nothing)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def save_tiny_checkpoint(path: Any, seed: int = 0, **sizes: Any) -> Any:
    """An ordinary Janus checkpoint directory at `path`: config, safetensors, tokenizer, chat templates."""
    tiny_janus(seed=seed, **sizes).save_pretrained(path)
    templated_tokenizer().save_pretrained(path)
    return path
