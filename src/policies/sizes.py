"""What a Janus policy is made of, in numbers: all that an estimate of its memory needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from src.config.schema import PROJECTIONS
from src.policies.engine.fused import merges
from src.values import IMAGE, PLAN

if TYPE_CHECKING:
    from src.policies.janus import JanusPolicy


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Widths of the trunk and bytes of the weights, of one policy.

    hidden, layers, heads, kv_heads, head_dim, intermediate: of the Llama trunk. vocabularies and features: V and F
    of each level's head. weight_bytes: all parameters and buffers of the policy; what a reference or a copy that
    decodes has besides is not among them. element: bytes of a weight of the trunk. projections: elements of the
    trunk's linears. trained: elements that get gradients; trained_element: bytes of one. lora: rank by projection,
    empty in full fine-tuning. merged: decoding uses a fused copy of the projections. picture_side in pixels and
    picture_channels, the width of the last stage of the picture decoder.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabularies: Mapping[str, int]
    features: Mapping[str, int]
    image_tokens: int
    weight_bytes: int
    element: int
    projections: int
    trained: int
    trained_element: int
    lora: Mapping[str, int]
    merged: bool
    picture_side: int
    picture_channels: int

    @property
    def trained_bytes(self) -> int:
        """Of the trained parameters, and of their gradients."""
        return self.trained * self.trained_element


def model_sizes(policy: JanusPolicy, device: torch.device | None = None) -> ModelSizes:
    """The sizes of a policy, read off its parameters (of any device, meta included).

    device: where it is going to compute; None: where it is.
    """
    janus, config = policy.janus, policy.janus.config
    trunk = janus.model.language_model
    text, vq = trunk.config, config.vq_config
    element = trunk.embed_tokens.weight.element_size()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    ranks = _lora_ranks(trunk)
    return ModelSizes(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocabularies={
            PLAN: janus.lm_head.weight.shape[0],
            IMAGE: janus.model.generation_head.vision_head.weight.shape[0],
        },
        features={
            PLAN: janus.lm_head.weight.shape[1],
            IMAGE: janus.model.generation_head.vision_head.weight.shape[1],
        },
        image_tokens=policy.image_tokens,
        weight_bytes=_bytes(policy),
        element=element,
        projections=_projection_elements(trunk),
        trained=sum(parameter.numel() for parameter in trained),
        trained_element=trained[0].element_size() if trained else element,
        lora=ranks,
        merged=merges(janus.lm_head.weight.dtype, device or policy.device, policy.merge_rollout),
        # Each stage of the decoder but the last doubles the side.
        picture_side=vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1),
        picture_channels=vq.base_channels * vq.channel_multiplier[0],
    )


def _bytes(module: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


def _projection_elements(trunk: nn.Module) -> int:
    """Elements of the base weights of all projections, adapters left out."""
    return sum(
        parameter.numel()
        for name, parameter in trunk.named_parameters()
        if name.removesuffix(".weight").removesuffix(".base_layer").rpartition(".")[2] in PROJECTIONS
    )


def _lora_ranks(trunk: nn.Module) -> dict[str, int]:
    """The rank of the adapter on each kind of projection that has one."""
    ranks: dict[str, int] = {}
    for name, parameter in trunk.named_parameters():
        layer, found, _ = name.partition(".lora_A.")
        if found:
            ranks[layer.rpartition(".")[2]] = parameter.shape[0]
    return ranks
