"""A CLIP's weights by open_clip's names (2103.00020's), loaded into transformers' CLIPModel.

The two have the same tensors, but open_clip keeps query, key and value of a layer in one matrix and its projections
transposed. Their activation is the exact GELU here; OpenAI's own weights use another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.rewards.vision.weights import WeightsMismatch, check_shapes, load_exactly, read_checkpoint


@dataclass(frozen=True, slots=True)
class ClipSizes:
    """The sizes in open_clip's model config of a CLIP; a checkpoint does not give the number of heads.

    The end-of-text token is the last of the vocabulary, the start-of-text token the one before.
    """

    embedding: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    vocabulary: int = 49408
    context_length: int = 77

    @property
    def end_of_text(self) -> int:
        """The id of the token at which a text's embedding is read."""
        return self.vocabulary - 1


VIT_H_14 = ClipSizes(
    embedding=1024,
    image_size=224,
    patch_size=14,
    vision_width=1280,
    vision_layers=32,
    vision_heads=16,
    text_width=1024,
    text_layers=24,
    text_heads=16,
)

_NAMES = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(\w+)")
_LAYER_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of open_clip's CLIP by the names of transformers' CLIPModel.

    A name that does not belong to a CLIP is kept unchanged, so that loading lists it as left over.
    """
    return {name: value for key, tensor in state.items() for name, value in _renamed(key, tensor)}


def load_clip(file: Path, sizes: ClipSizes, dtype: torch.dtype) -> Any:
    """transformers' CLIPModel with the weights of an open_clip training checkpoint ``{"state_dict": ...}``.

    Raises:
        WeightsMismatch: naming `file` and the keys that are missing, left over, or of another shape.
    """
    from transformers import CLIPModel

    content = read_checkpoint(file)
    if not isinstance(content.get("state_dict"), Mapping):
        raise WeightsMismatch(f"{file}: no 'state_dict' in it; expected an open_clip training checkpoint")
    state, config = to_transformers(content["state_dict"]), clip_config(sizes)
    # Refuse another model's file before a billion missing weights are initialised at random.
    with torch.device("meta"):
        check_shapes(file, state, {name: value.shape for name, value in CLIPModel(config).state_dict().items()})
    return load_exactly(CLIPModel, config, state, dtype, file)


def clip_config(sizes: ClipSizes) -> Any:
    """transformers' config of such a CLIP."""
    from transformers import CLIPConfig

    shared = {"hidden_act": "gelu", "projection_dim": sizes.embedding}
    vision = {
        "hidden_size": sizes.vision_width,
        "intermediate_size": 4 * sizes.vision_width,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
    }
    text = {
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_heads,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.context_length,
        # The text embedding is read at the first of these.
        "eos_token_id": sizes.end_of_text,
        "bos_token_id": sizes.end_of_text - 1,
        "pad_token_id": sizes.end_of_text,
    }
    return CLIPConfig(vision_config=vision | shared, text_config=text | shared, projection_dim=sizes.embedding)


def _renamed(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if key in _TRANSPOSED:
        yield _TRANSPOSED[key], tensor.T.contiguous()
    elif (match := _LAYER.fullmatch(key)) is not None:
        visual, layer, part, kind = match.groups()
        prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}"
        if part == "attn" and kind in ("in_proj_weight", "in_proj_bias"):
            for name, third in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
                yield f"{prefix}.self_attn.{name}_proj.{kind.removeprefix('in_proj_')}", third.contiguous()
        else:
            yield f"{prefix}.{_LAYER_PARTS.get(part, part)}.{kind}", tensor
    else:
        yield _NAMES.get(key, key), tensor
