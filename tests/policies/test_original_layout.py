"""Names of the original layout, against tables written by hand from the released code."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.policies.original_layout import (
    has_no_counterpart,
    original_name,
    to_original,
    to_transformers,
    transformers_names,
)
from tests.conftest import ROOT
from tests.policies.original import (
    PRO_1B,
    PRO_7B,
    TINY,
    Sizes,
    dropped_shapes,
    needed_shapes,
    tiny_janus_of_both,
    tiny_original,
)

BLOCK, LAYER = "vision_model.vision_tower.blocks.13", "model.vision_model.encoder.layers.13"
# One of every kind of module, by eye.
PAIRS = {
    "language_model.lm_head.weight": "lm_head.weight",
    "language_model.model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "language_model.model.layers.23.self_attn.q_proj.weight": "model.language_model.layers.23.self_attn.q_proj.weight",
    "language_model.model.norm.weight": "model.language_model.norm.weight",
    "aligner.layers.0.bias": "model.aligner.fc1.bias",
    "aligner.layers.2.weight": "model.aligner.hidden_layers.0.weight",
    "gen_aligner.layers.0.weight": "model.generation_aligner.fc1.weight",
    "gen_aligner.layers.2.bias": "model.generation_aligner.hidden_layers.0.bias",
    "gen_embed.weight": "model.generation_embeddings.weight",
    "gen_head.output_mlp_projector.weight": "model.generation_head.proj_out.weight",
    "gen_head.vision_head.bias": "model.generation_head.vision_head.bias",
    "vision_model.vision_tower.patch_embed.proj.weight": "model.vision_model.embeddings.patch_embedding.weight",
    "vision_model.vision_tower.pos_embed": "model.vision_model.embeddings.position_embedding.weight",
    "vision_model.vision_tower.norm.bias": "model.vision_model.post_layernorm.bias",
    f"{BLOCK}.norm1.weight": f"{LAYER}.layer_norm1.weight",
    f"{BLOCK}.norm2.bias": f"{LAYER}.layer_norm2.bias",
    f"{BLOCK}.attn.proj.weight": f"{LAYER}.self_attn.projection_layer.weight",
    f"{BLOCK}.mlp.fc1.weight": f"{LAYER}.mlp.fc1.weight",
    "gen_vision_model.encoder.conv_in.weight": "model.vqmodel.encoder.conv_in.weight",
    "gen_vision_model.encoder.conv_blocks.4.res.1.conv2.bias": "model.vqmodel.encoder.down.4.block.1.conv2.bias",
    "gen_vision_model.encoder.conv_blocks.4.attn.0.q.weight": "model.vqmodel.encoder.down.4.attn.0.q.weight",
    "gen_vision_model.encoder.conv_blocks.0.downsample.conv.bias": "model.vqmodel.encoder.down.0.downsample.conv.bias",
    "gen_vision_model.decoder.conv_blocks.3.res.0.nin_shortcut.weight": (
        "model.vqmodel.decoder.up.3.block.0.nin_shortcut.weight"
    ),
    "gen_vision_model.decoder.conv_blocks.0.upsample.conv.weight": "model.vqmodel.decoder.up.0.upsample.conv.weight",
    "gen_vision_model.encoder.mid.0.norm1.weight": "model.vqmodel.encoder.mid.block_1.norm1.weight",
    "gen_vision_model.decoder.mid.1.proj_out.weight": "model.vqmodel.decoder.mid.attn_1.proj_out.weight",
    "gen_vision_model.decoder.mid.2.conv1.weight": "model.vqmodel.decoder.mid.block_2.conv1.weight",
    "gen_vision_model.quantize.embedding.weight": "model.vqmodel.quantize.embedding.weight",
    "gen_vision_model.quant_conv.weight": "model.vqmodel.quant_conv.weight",
    "gen_vision_model.post_quant_conv.bias": "model.vqmodel.post_quant_conv.bias",
}


@pytest.mark.parametrize("original", PAIRS)
def test_a_weight_of_every_module_has_its_name(original: str) -> None:
    assert transformers_names(original) == (PAIRS[original],)
    assert original_name(PAIRS[original]) == original


def test_the_documented_names_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "CHECKPOINTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+\..+?)`.*? \| (?:`(.+?)`|none)", page, flags=re.MULTILINE)
    assert len(rows) == 25

    def example(name: str) -> str:
        return name.replace(".N.", ".7.").replace("*", "weight")

    for original, name in rows:
        assert transformers_names(example(original))[:1] == ((example(name),) if name else ())


def test_one_qkv_is_three_projections() -> None:
    names = tuple(f"{LAYER}.self_attn.{part}_proj.bias" for part in "qkv")
    assert transformers_names(f"{BLOCK}.attn.qkv.bias") == names
    assert {original_name(name) for name in names} == {f"{BLOCK}.attn.qkv.bias"}
    # The language model's projections are stored apart in both layouts.
    language = "model.language_model.layers.0.self_attn.k_proj.weight"
    assert original_name(language) == "language_model.model.layers.0.self_attn.k_proj.weight"


@pytest.mark.parametrize("sizes", [PRO_1B, PRO_7B, TINY], ids=["1B", "7B", "tiny"])
def test_every_name_goes_there_and_back(sizes: Sizes) -> None:
    needed = needed_shapes(sizes)
    theirs = [name for original in needed for name in transformers_names(original)]
    assert len(theirs) == len(set(theirs)) == len(needed) + 2 * 2 * sizes.blocks
    for original in needed:
        assert {original_name(name) for name in transformers_names(original)} == {original}
    for dropped in dropped_shapes(sizes):
        assert transformers_names(dropped) == ()
        assert has_no_counterpart(dropped)


@pytest.mark.parametrize("name", ["model.layers.0.weight", "vision_tower.norm.weight", "lm_head.weight", ""])
def test_a_name_of_no_module_of_the_original_has_none(name: str) -> None:
    assert transformers_names(name) == ()
    assert not has_no_counterpart(name)
    with pytest.raises(ValueError, match="not a weight of the original"):
        to_transformers({name: torch.zeros(1)})


@pytest.mark.parametrize("name", ["model.layers.0.weight", "model.vision_model.encoder.layers.0.self_attn.q_norm.bias"])
def test_a_name_the_original_architecture_lacks(name: str) -> None:
    with pytest.raises(ValueError, match="not a weight of the original"):
        original_name(name)


def test_the_mapping_is_that_of_the_modules() -> None:
    """`tiny_original` takes the weights module by module, by hand; the mapping gives the same tensors, bit by bit."""
    state = tiny_janus_of_both().state_dict()
    original = tiny_original()
    mapped = to_transformers(original)
    assert mapped.keys() == state.keys()
    assert all(torch.equal(mapped[name], state[name]) for name in state)
    back = to_original(state)
    assert back.keys() == original.keys() - dropped_shapes(TINY).keys()
    assert all(torch.equal(back[name], original[name]) for name in back)


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 5),
    block=st.integers(0, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**16),
)
def test_splitting_and_merging_lose_nothing(width: int, block: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    name = f"vision_model.vision_tower.blocks.{block}.attn.qkv"
    original = {
        f"{name}.weight": drawn(3 * width, width),
        f"{name}.bias": drawn(3 * width),
        "vision_model.vision_tower.pos_embed": drawn(1, 4, width),
    }
    mapped = to_transformers(original)
    rows = original[f"{name}.weight"]
    for i, part in enumerate("qkv"):
        found = mapped[f"model.vision_model.encoder.layers.{block}.self_attn.{part}_proj.weight"]
        assert torch.equal(found, rows[i * width : (i + 1) * width])
    assert mapped["model.vision_model.embeddings.position_embedding.weight"].shape == (4, width)
    back = to_original(mapped)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)


def test_a_part_of_an_attention_is_not_written() -> None:
    state = tiny_janus_of_both().state_dict()
    del state["model.vision_model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"attn\.qkv\.bias: k_proj missing next to q_proj, v_proj"):
        to_original(state)
