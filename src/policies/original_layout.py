"""The layout Janus was released in (deepseek-ai/Janus-Pro-*, CaraJ/T2I-R1): its weights' names, both ways.

The modules are those of github.com/deepseek-ai/Janus (commit 1daa72f, ``janus/models/``). The same weights have
other names in transformers' `JanusForConditionalGeneration`; none is permuted. Only the vision tower's attention is
stored otherwise: one ``qkv`` of three blocks of rows where transformers has ``q_proj``, ``k_proj``, ``v_proj``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# (original, transformers); {n} is a number, {*} what follows. The first that fits counts, in both directions.
_TOWER, _LAYERS = "vision_model.vision_tower.", "model.vision_model.encoder.layers.{n}."
_POSITIONS = _TOWER + "pos_embed"
RULES = (
    ("language_model.lm_head.{*}", "lm_head.{*}"),
    ("language_model.model.{*}", "model.language_model.{*}"),
    ("aligner.layers.0.{*}", "model.aligner.fc1.{*}"),
    ("aligner.layers.2.{*}", "model.aligner.hidden_layers.0.{*}"),
    ("gen_aligner.layers.0.{*}", "model.generation_aligner.fc1.{*}"),
    ("gen_aligner.layers.2.{*}", "model.generation_aligner.hidden_layers.0.{*}"),
    ("gen_embed.{*}", "model.generation_embeddings.{*}"),
    ("gen_head.output_mlp_projector.{*}", "model.generation_head.proj_out.{*}"),
    ("gen_head.vision_head.{*}", "model.generation_head.vision_head.{*}"),
    (_TOWER + "patch_embed.proj.{*}", "model.vision_model.embeddings.patch_embedding.{*}"),
    (_POSITIONS, "model.vision_model.embeddings.position_embedding.weight"),
    (_TOWER + "norm.{*}", "model.vision_model.post_layernorm.{*}"),
    (_TOWER + "blocks.{n}.norm1.{*}", _LAYERS + "layer_norm1.{*}"),
    (_TOWER + "blocks.{n}.norm2.{*}", _LAYERS + "layer_norm2.{*}"),
    (_TOWER + "blocks.{n}.attn.qkv.{*}", _LAYERS + "self_attn.qkv.{*}"),
    (_TOWER + "blocks.{n}.attn.proj.{*}", _LAYERS + "self_attn.projection_layer.{*}"),
    (_TOWER + "blocks.{n}.mlp.{*}", _LAYERS + "mlp.{*}"),
    ("gen_vision_model.encoder.conv_blocks.{n}.res.{*}", "model.vqmodel.encoder.down.{n}.block.{*}"),
    ("gen_vision_model.encoder.conv_blocks.{n}.{*}", "model.vqmodel.encoder.down.{n}.{*}"),
    ("gen_vision_model.decoder.conv_blocks.{n}.res.{*}", "model.vqmodel.decoder.up.{n}.block.{*}"),
    ("gen_vision_model.decoder.conv_blocks.{n}.{*}", "model.vqmodel.decoder.up.{n}.{*}"),
    ("gen_vision_model.encoder.mid.0.{*}", "model.vqmodel.encoder.mid.block_1.{*}"),
    ("gen_vision_model.encoder.mid.1.{*}", "model.vqmodel.encoder.mid.attn_1.{*}"),
    ("gen_vision_model.encoder.mid.2.{*}", "model.vqmodel.encoder.mid.block_2.{*}"),
    ("gen_vision_model.decoder.mid.0.{*}", "model.vqmodel.decoder.mid.block_1.{*}"),
    ("gen_vision_model.decoder.mid.1.{*}", "model.vqmodel.decoder.mid.attn_1.{*}"),
    ("gen_vision_model.decoder.mid.2.{*}", "model.vqmodel.decoder.mid.block_2.{*}"),
    ("gen_vision_model.{*}", "model.vqmodel.{*}"),
)
# The tower's pooling head is never run (``ignore_head``); the codes last used are a training statistic.
CODES_USED = "gen_vision_model.quantize.codebook_used"
NO_COUNTERPART = (_TOWER + "attn_pool.", CODES_USED)
_PARTS = ("q_proj", "k_proj", "v_proj")


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{\*\}", r"(?P<rest>.+)")
    return re.compile(text)


_FORWARD = [(_pattern(original), own) for original, own in RULES]
_BACKWARD = [(_pattern(own), original) for original, own in RULES]


def _renamed(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        if found := pattern.fullmatch(name):
            groups = found.groupdict()
            return template.replace("{n}", groups.get("n") or "").replace("{*}", groups.get("rest") or "")
    return None


def has_no_counterpart(original: str) -> bool:
    """Whether a weight of the original layout is one that transformers' Janus has no place for (and never needs)."""
    return original.startswith(NO_COUNTERPART)


def transformers_names(original: str) -> tuple[str, ...]:
    """What a weight of the original layout is called in transformers: one name, three for a ``qkv``, or none.

    None: it has no counterpart (`has_no_counterpart`), or is no weight of a Janus.
    """
    name = None if has_no_counterpart(original) else _renamed(original, _FORWARD)
    if name is None:
        return ()
    if ".self_attn.qkv." in name:
        return tuple(name.replace(".qkv.", f".{part}.") for part in _PARTS)
    return (name,)


def original_name(name: str) -> str:
    """What a weight of transformers' Janus is called in the original layout.

    Raises:
        ValueError: if the original architecture has no such weight.
    """
    merged = name
    if name.startswith("model.vision_model."):
        merged = re.sub(r"\.self_attn\.[qkv]_proj\.", ".self_attn.qkv.", name)
    found = _renamed(merged, _BACKWARD)
    if found is None:
        raise ValueError(f"{name}: not a weight of the original Janus architecture")
    return found


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the original layout under transformers' names, as views; those without a counterpart fall away.

    Raises:
        ValueError: for a weight that is no Janus's.
    """
    mapped: dict[str, Tensor] = {}
    for original, value in weights.items():
        names = transformers_names(original)
        if len(names) == len(_PARTS):
            mapped |= zip(names, value.chunk(len(_PARTS)), strict=True)
        elif names:
            # One position table for all images: its leading axis of one falls away.
            mapped[names[0]] = value[0] if original == _POSITIONS else value
        elif not has_no_counterpart(original):
            raise ValueError(f"{original}: not a weight of the original Janus architecture")
    return mapped


def to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' Janus under the original layout's names; only a ``qkv`` is copied.

    Works on the meta device too, for shapes alone.

    Raises:
        ValueError: for a weight the original architecture lacks, or a q, k or v without the other two.
    """
    mapped: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        original = original_name(name)
        if ".attn.qkv." in original:
            parts.setdefault(original, {})[name.split(".")[-2]] = value
        else:
            mapped[original] = value[None] if original == _POSITIONS else value
    for original, found in parts.items():
        if missing := sorted(set(_PARTS) - set(found)):
            raise ValueError(f"{original}: {', '.join(missing)} missing next to {', '.join(sorted(found))}")
        mapped[original] = torch.cat([found[part] for part in _PARTS])
    return mapped
