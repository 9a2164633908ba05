"""The layout Janus was released in, written out by hand: names, shapes, configs. Nothing here uses src's mapping.

Names and shapes are those of the modules in github.com/deepseek-ai/Janus (commit 1daa72f); the configs are
Janus-Pro-1B's and -7B's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.policies.tiny import templated_tokenizer, tiny_janus

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Every size of a Janus; the defaults are those no Janus-Pro differs in."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int = 102400
    keys: int | None = None  # width of k and v; None: hidden
    width: int = 1024
    blocks: int = 24
    mlp: int = 4096
    patch: int = 16
    positions: int = 576
    codes: int = 16384
    code_width: int = 8
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    latent: int = 256


PRO_1B = Sizes(hidden=2048, inner=5632, layers=24)
PRO_7B = Sizes(hidden=4096, inner=11008, layers=30)
TINY = Sizes(
    hidden=32, inner=64, layers=2, vocabulary=64, keys=16, width=16, blocks=1, mlp=64, patch=4, positions=9, codes=24,
    code_width=8, channels=32, multipliers=(1, 1, 2), res_blocks=1, latent=32,
)  # fmt: skip


def linear(name: str, out: int, into: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(name: str, out: int, into: int, side: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def resnet(name: str, into: int, out: int) -> dict[str, Shape]:
    shapes = norm(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into, 3)
    shapes |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out, 3)
    return shapes | (conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {})


def attention(name: str, width: int) -> dict[str, Shape]:
    shapes = norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.{part}", width, width, 1)
    return shapes


def middle(name: str, width: int) -> dict[str, Shape]:
    return resnet(f"{name}.0", width, width) | attention(f"{name}.1", width) | resnet(f"{name}.2", width, width)


def language_shapes(s: Sizes) -> dict[str, Shape]:
    h, kv = s.hidden, s.keys or s.hidden
    shapes: dict[str, Shape] = {"language_model.model.embed_tokens.weight": (s.vocabulary, h)}
    for i in range(s.layers):
        layer = f"language_model.model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (h,),
            f"{layer}.self_attn.q_proj.weight": (h, h),
            f"{layer}.self_attn.k_proj.weight": (kv, h),
            f"{layer}.self_attn.v_proj.weight": (kv, h),
            f"{layer}.self_attn.o_proj.weight": (h, h),
            f"{layer}.post_attention_layernorm.weight": (h,),
            f"{layer}.mlp.gate_proj.weight": (s.inner, h),
            f"{layer}.mlp.up_proj.weight": (s.inner, h),
            f"{layer}.mlp.down_proj.weight": (h, s.inner),
        }
    return shapes | {"language_model.model.norm.weight": (h,), "language_model.lm_head.weight": (s.vocabulary, h)}


def tower_shapes(s: Sizes) -> dict[str, Shape]:
    tower, w = "vision_model.vision_tower", s.width
    shapes: dict[str, Shape] = {f"{tower}.pos_embed": (1, s.positions, w)}
    shapes |= conv(f"{tower}.patch_embed.proj", w, 3, s.patch) | norm(f"{tower}.norm", w)
    for i in range(s.blocks):
        block = f"{tower}.blocks.{i}"
        shapes |= norm(f"{block}.norm1", w) | norm(f"{block}.norm2", w)
        shapes |= linear(f"{block}.attn.qkv", 3 * w, w) | linear(f"{block}.attn.proj", w, w)
        shapes |= linear(f"{block}.mlp.fc1", s.mlp, w) | linear(f"{block}.mlp.fc2", w, s.mlp)
    return shapes


def pool_shapes(s: Sizes) -> dict[str, Shape]:
    """timm's AttentionPoolLatent: in the released files, never run."""
    pool, w = "vision_model.vision_tower.attn_pool", s.width
    shapes: dict[str, Shape] = {f"{pool}.latent": (1, 1, w)}
    shapes |= linear(f"{pool}.q", w, w) | linear(f"{pool}.kv", 2 * w, w) | linear(f"{pool}.proj", w, w)
    shapes |= norm(f"{pool}.norm", w)
    return shapes | linear(f"{pool}.mlp.fc1", s.mlp, w) | linear(f"{pool}.mlp.fc2", w, s.mlp)


def vq_shapes(s: Sizes) -> dict[str, Shape]:
    vq, ch, last = "gen_vision_model", s.channels, len(s.multipliers) - 1
    widths = [ch * m for m in s.multipliers]
    shapes = conv(f"{vq}.encoder.conv_in", ch, 3, 3)
    into = ch
    for level, out in enumerate(widths):
        block = f"{vq}.encoder.conv_blocks.{level}"
        for i in range(s.res_blocks):
            shapes |= resnet(f"{block}.res.{i}", into, out)
            into = out
            if level == last:
                shapes |= attention(f"{block}.attn.{i}", out)
        if level != last:
            shapes |= conv(f"{block}.downsample.conv", into, into, 3)
    shapes |= middle(f"{vq}.encoder.mid", into) | norm(f"{vq}.encoder.norm_out", into)
    shapes |= conv(f"{vq}.encoder.conv_out", s.latent, into, 3)
    into = widths[-1]
    shapes |= conv(f"{vq}.decoder.conv_in", into, s.latent, 3) | middle(f"{vq}.decoder.mid", into)
    for place, level in enumerate(reversed(range(last + 1))):
        block = f"{vq}.decoder.conv_blocks.{place}"
        for i in range(s.res_blocks + 1):
            shapes |= resnet(f"{block}.res.{i}", into, widths[level])
            into = widths[level]
            if level == last:
                shapes |= attention(f"{block}.attn.{i}", into)
        if level != 0:
            shapes |= conv(f"{block}.upsample.conv", into, into, 3)
    shapes |= norm(f"{vq}.decoder.norm_out", into) | conv(f"{vq}.decoder.conv_out", 3, into, 3)
    shapes |= conv(f"{vq}.quant_conv", s.code_width, s.latent, 1)
    shapes |= conv(f"{vq}.post_quant_conv", s.latent, s.code_width, 1)
    return shapes | {f"{vq}.quantize.embedding.weight": (s.codes, s.code_width)}


def glue_shapes(s: Sizes) -> dict[str, Shape]:
    h = s.hidden
    shapes = linear("aligner.layers.0", h, s.width) | linear("aligner.layers.2", h, h)
    shapes |= linear("gen_aligner.layers.0", h, s.code_width) | linear("gen_aligner.layers.2", h, h)
    shapes |= linear("gen_head.output_mlp_projector", h, h) | linear("gen_head.vision_head", s.codes, h)
    return shapes | {"gen_embed.weight": (s.codes, s.code_width)}


def dropped_shapes(s: Sizes) -> dict[str, Shape]:
    """What a released file has and transformers' Janus has no place for."""
    return pool_shapes(s) | {"gen_vision_model.quantize.codebook_used": (65536,)}


def needed_shapes(s: Sizes) -> dict[str, Shape]:
    return language_shapes(s) | tower_shapes(s) | vq_shapes(s) | glue_shapes(s)


def published_config(s: Sizes, language: Mapping[str, Any]) -> dict[str, Any]:
    """A released config.json."""
    mlp = {"depth": 2, "n_embed": s.hidden, "projector_type": "mlp_gelu"}
    codes = {"image_token_size": s.codes}
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": 384,
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": {**mlp, "input_dim": 1024}},
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {**codes, "n_embed": 8}},
        "gen_aligner_config": {"cls": "MlpProjector", "model_type": "gen_aligner", "params": {**mlp, "input_dim": 8}},
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {**codes, "image_token_embed": s.hidden, "n_embed": s.hidden},
        },
        "language_config": {"model_type": "llama", "torch_dtype": "bfloat16", **language},
    }


LANGUAGE_1B = {
    "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 16384, "num_attention_heads": 16,
    "num_hidden_layers": 24, "num_key_value_heads": 16, "vocab_size": 102400,
}  # fmt: skip
# Leaves out what is Llama's default: width 4096, inner width 11008, 32 heads.
LANGUAGE_7B = {"max_position_embeddings": 16384, "num_hidden_layers": 30, "vocab_size": 102400}


def tiny_config() -> dict[str, Any]:
    """The config of `tiny_original`: no preset has its sizes, so all are spelled out."""
    language = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 1024,
    }  # fmt: skip
    config = published_config(TINY, language)
    config["torch_dtype"] = config["language_config"]["torch_dtype"] = "float32"
    config["vision_config"]["params"] |= {
        "image_size": 12, "model_name": "siglip_other", "width": 16, "layers": 1, "heads": 2, "patch_size": 4,
        "mlp_ratio": 4,
    }  # fmt: skip
    config["aligner_config"]["params"]["input_dim"] = 16
    config["gen_vision_config"] |= {"cls": "VQ-other"}
    config["gen_vision_config"]["params"] |= {"z_channels": 32, "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1}
    return config


def tiny_janus_of_both() -> Any:
    """The transformers model whose weights `tiny_original` holds."""
    return tiny_janus(res_blocks=1)


def tiny_original() -> dict[str, Tensor]:
    """`tiny_janus_of_both`'s weights under their original names, taken module by module; the unused ones drawn."""
    janus = tiny_janus_of_both()
    model, weights = janus.model, {}

    def take(name: str, module: Any) -> None:
        weights.update({f"{name}.{key}": value for key, value in module.state_dict().items()})

    take("language_model.lm_head", janus.lm_head)
    take("language_model.model", model.language_model)
    take("gen_embed", model.generation_embeddings)
    for name, module in (("aligner", model.aligner), ("gen_aligner", model.generation_aligner)):
        take(f"{name}.layers.0", module.fc1)
        take(f"{name}.layers.2", module.hidden_layers[0])
    take("gen_head.output_mlp_projector", model.generation_head.proj_out)
    take("gen_head.vision_head", model.generation_head.vision_head)
    tower, vision = "vision_model.vision_tower", model.vision_model
    take(f"{tower}.patch_embed.proj", vision.embeddings.patch_embedding)
    weights[f"{tower}.pos_embed"] = vision.embeddings.position_embedding.weight.detach()[None]
    take(f"{tower}.norm", vision.post_layernorm)
    for i, layer in enumerate(vision.encoder.layers):
        block, attn = f"{tower}.blocks.{i}", layer.self_attn
        take(f"{block}.norm1", layer.layer_norm1)
        take(f"{block}.norm2", layer.layer_norm2)
        take(f"{block}.mlp", layer.mlp)
        take(f"{block}.attn.proj", attn.projection_layer)
        for kind in ("weight", "bias"):
            rows = [getattr(part, kind).detach() for part in (attn.q_proj, attn.k_proj, attn.v_proj)]
            weights[f"{block}.attn.qkv.{kind}"] = torch.cat(rows)
    vq = model.vqmodel
    for name in ("quant_conv", "post_quant_conv", "quantize"):
        take(f"gen_vision_model.{name}", getattr(vq, name))
    for name, half, levels in (("encoder", vq.encoder, vq.encoder.down), ("decoder", vq.decoder, vq.decoder.up)):
        for part in ("conv_in", "norm_out", "conv_out"):
            take(f"gen_vision_model.{name}.{part}", getattr(half, part))
        for i, part in enumerate((half.mid.block_1, half.mid.attn_1, half.mid.block_2)):
            take(f"gen_vision_model.{name}.mid.{i}", part)
        for i, level in enumerate(levels):
            take(f"gen_vision_model.{name}.conv_blocks.{i}.res", level.block)
            take(f"gen_vision_model.{name}.conv_blocks.{i}.attn", level.attn)
            for sampler in ("downsample", "upsample"):
                if hasattr(level, sampler):
                    take(f"gen_vision_model.{name}.conv_blocks.{i}.{sampler}", getattr(level, sampler))
    generator = torch.Generator().manual_seed(7)
    for name, shape in dropped_shapes(TINY).items():
        weights[name] = torch.randn(shape, generator=generator)
    return {name: value.detach().contiguous() for name, value in weights.items()}


def save_tiny_original(path: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """A directory in the original layout as the released ones are: one pickled file, config, tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    torch.save(dict(tiny_original() if weights is None else weights), path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps(tiny_config()), encoding="utf-8")
    templated_tokenizer().save_pretrained(path)
    return path
