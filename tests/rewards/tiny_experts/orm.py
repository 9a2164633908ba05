"""ORM on a tiny LLaVA-OneVision in LLaVA-NeXT's layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from src.rewards.experts.orm import ORM
from tests.rewards.tiny_experts.text import prompts, qwen_tokenizer

EXPERT, SIDE, records = ORM, 12, prompts

VISION = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
# The keys of the published config.json that matter, with tiny sizes; it names the vision tower only.
CONFIG = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 264,
}


def llava_shapes() -> dict[str, tuple[int, ...]]:
    """Every key of LLaVA-NeXT's LlavaQwenForCausalLM of these sizes, with its shape."""
    width, hidden, vocabulary = 16, 32, 264
    eyes, eye_hidden = VISION["hidden_size"], VISION["intermediate_size"]
    tower = "model.vision_tower.vision_tower.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "model.image_newline": (width,),
        "model.mm_projector.0.weight": (width, eyes),
        "model.mm_projector.0.bias": (width,),
        "model.mm_projector.2.weight": (width, width),
        "model.mm_projector.2.bias": (width,),
        "lm_head.weight": (vocabulary, width),
        f"{tower}.embeddings.patch_embedding.weight": (eyes, 3, 4, 4),
        f"{tower}.embeddings.patch_embedding.bias": (eyes,),
        f"{tower}.embeddings.position_embedding.weight": (4, eyes),
        f"{tower}.post_layernorm.weight": (eyes,),
        f"{tower}.post_layernorm.bias": (eyes,),
    }
    for layer in range(2):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.self_attn.q_proj.weight": (width, width),
            f"{block}.self_attn.q_proj.bias": (width,),
            f"{block}.self_attn.k_proj.weight": (width // 2, width),
            f"{block}.self_attn.k_proj.bias": (width // 2,),
            f"{block}.self_attn.v_proj.weight": (width // 2, width),
            f"{block}.self_attn.v_proj.bias": (width // 2,),
            f"{block}.self_attn.o_proj.weight": (width, width),
            f"{block}.mlp.gate_proj.weight": (hidden, width),
            f"{block}.mlp.up_proj.weight": (hidden, width),
            f"{block}.mlp.down_proj.weight": (width, hidden),
            f"{block}.input_layernorm.weight": (width,),
            f"{block}.post_attention_layernorm.weight": (width,),
        }
        block = f"{tower}.encoder.layers.{layer}"
        linears = {f"self_attn.{name}_proj": (eyes, eyes) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (eye_hidden, eyes), "mlp.fc2": (eyes, eye_hidden)}
        for name, shape in linears.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{block}.{name}.weight": (eyes,), f"{block}.{name}.bias": (eyes,)}
    return shapes


def llava_state() -> dict[str, Tensor]:
    """Random weights, large enough that attention and activations are far from linear."""
    generator = torch.Generator().manual_seed(2)
    return {key: 0.5 * torch.randn(shape, generator=generator) for key, shape in llava_shapes().items()}


def write(folder: Path) -> dict[str, object]:
    write_checkpoint(folder, llava_state(), CONFIG)
    return {"path": folder, "vision": VISION, "dtype": "float32", "batch_size": 2}


def write_checkpoint(folder: Path, state: dict[str, Tensor], config: dict[str, object]) -> None:
    """Two shards, as the published ones are several."""
    keys = sorted(state)
    for shard, part in enumerate((keys[::2], keys[1::2]), start=1):
        save_file({key: state[key] for key in part}, folder / f"model-0000{shard}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    qwen_tokenizer(folder)
