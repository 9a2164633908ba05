"""config.json of the original layout: the published ones, models of other sizes, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from src.policies.checkpoint import expected_shapes
from src.policies.original_config import OTHER_TOWER, OTHER_VQ, read_config, write_config
from src.policies.weight_files import CheckpointError
from tests.policies.original import (
    LANGUAGE_1B,
    LANGUAGE_7B,
    PRO_1B,
    PRO_7B,
    TINY,
    Sizes,
    needed_shapes,
    published_config,
    tiny_config,
    tiny_janus_of_both,
)

FILE = Path("somewhere/config.json")
IDS = {"bos": 100000, "eos": 100001, "pad": 100002, "image": 100581}


TINY_IDS = {"bos": 0, "eos": 1, "pad": 2, "image": 6}


def read(content: dict[str, Any], ids: dict[str, int] = IDS) -> Any:
    return read_config(FILE, content, ids)


@pytest.mark.parametrize(
    ("sizes", "language"), [(PRO_1B, LANGUAGE_1B), (PRO_7B, LANGUAGE_7B)], ids=["Janus-Pro-1B", "Janus-Pro-7B"]
)
def test_a_published_config_gives_the_published_weights(sizes: Sizes, language: dict[str, Any]) -> None:
    """Every name and shape of the released files, of which the config names presets only."""
    config = read(published_config(sizes, language))
    assert expected_shapes(config, "original") == needed_shapes(sizes)
    assert (config.vision_config.image_size, config.vision_config.patch_size, config.vq_config.num_patches) == (
        384, 16, 24,
    )  # fmt: skip
    assert config.vision_config.num_image_tokens == 576
    assert config.vision_config.num_attention_heads == 16
    text = config.text_config
    assert (text.num_attention_heads, text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (
        sizes.hidden // 128, 1e-6, 10000.0,
    )  # fmt: skip
    assert (config.image_token_id, text.bos_token_id, text.eos_token_id, text.pad_token_id) == (
        100581, 100000, 100001, 100002,
    )  # fmt: skip
    # Tied, transformers would overwrite lm_head.
    assert not config.tie_word_embeddings
    assert not text.tie_word_embeddings


@pytest.mark.parametrize(
    ("sizes", "language"), [(PRO_1B, LANGUAGE_1B), (PRO_7B, LANGUAGE_7B)], ids=["Janus-Pro-1B", "Janus-Pro-7B"]
)
def test_written_again_a_published_config_says_the_same(sizes: Sizes, language: dict[str, Any]) -> None:
    published = published_config(sizes, language)
    written = write_config(read(published), "bfloat16")
    for part in ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head"):
        assert written[f"{part}_config"] == published[f"{part}_config"]
    assert written["model_type"] == "multi_modality"
    assert written["torch_dtype"] == "bfloat16"
    assert written["language_config"].items() >= published["language_config"].items()


def test_other_sizes_are_spelled_out_and_read_back() -> None:
    config = read(tiny_config(), TINY_IDS)
    assert expected_shapes(config, "original") == needed_shapes(TINY)
    own = tiny_janus_of_both().config
    for part in ("text_config", "vision_config", "vq_config"):
        skip = {"bos_token_id", "eos_token_id", "pad_token_id", "dtype", "initializer_range", "tie_word_embeddings"}
        ours, theirs = getattr(config, part).to_dict(), getattr(own, part).to_dict()
        assert {k: v for k, v in ours.items() if k not in skip} == {k: v for k, v in theirs.items() if k not in skip}
    written = write_config(own, "float32")
    assert written["vision_config"]["params"]["model_name"] == OTHER_TOWER
    assert written["gen_vision_config"]["cls"] == OTHER_VQ
    for part in ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head"):
        assert written[f"{part}_config"] == tiny_config()[f"{part}_config"]


def test_a_language_model_with_other_rotary_settings_keeps_them() -> None:
    content = tiny_config()
    scaling = {"rope_type": "linear", "factor": 4.0}
    content["language_config"] |= {"rope_theta": 50000.0, "rope_scaling": scaling, "_attn_implementation": "eager"}
    config = read(content)
    assert config.text_config.rope_parameters == {"rope_theta": 50000.0, **scaling}
    written = write_config(config, "float32")["language_config"]
    assert (written["rope_theta"], written["rope_scaling"]) == (50000.0, scaling)


@pytest.mark.parametrize(("layer", "blocks"), [(-1, 24), (-2, 23), (5, 5), (99, 24), (None, 23)])
def test_the_layer_that_is_read_ends_the_tower(layer: int | None, blocks: int) -> None:
    """As the released ``create_siglip_vit`` counts; left out, the released default is the last but one."""
    content = published_config(PRO_1B, LANGUAGE_1B)
    params = content["vision_config"]["params"]
    params["select_layer"] = layer
    if layer is None:
        del params["select_layer"]
    assert read(content).vision_config.num_hidden_layers == blocks


def changed(key: str, value: Any) -> dict[str, Any]:
    """Janus-Pro-1B's config with one key set, or taken away."""
    content = copy.deepcopy(published_config(PRO_1B, LANGUAGE_1B))
    *path, last = key.split(".")
    place = content
    for step in path:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("gen_vision_config", None, "DeepSeek-VL"),
        ("language_config", None, "missing"),
        ("aligner_config.params", None, "missing"),
        ("language_config.model_type", "qwen2", "expected 'llama', found 'qwen2'"),
        ("language_config.hidden_size", "wide", "hidden_size"),
        ("vision_config.params.model_name", "siglip_giant", "known: siglip_large_patch16_384"),
        ("vision_config.params.image_size", 390, "not a multiple of the patch size 16"),
        ("vision_config.params.image_size", None, "expected a positive integer, found None"),
        ("vision_config.params.select_layer", "last", "expected an integer"),
        ("gen_vision_config.cls", "VQ-8", "known: VQ-16"),
        ("gen_vision_config.params.image_token_size", 8192, "VQ-16's codebook has 16384"),
        ("gen_vision_config.params.n_embed", 16, "VQ-16's codebook has 8"),
        ("gen_head_config.params.image_token_size", 8192, "the head has 8192 image tokens, the codebook 16384"),
        ("gen_head_config.params.n_embed", 1024, "the rest of the model needs 2048"),
        ("gen_head_config.params.image_token_embed", 1024, "the rest of the model needs 2048"),
        ("aligner_config.params.input_dim", 1152, "the rest of the model needs 1024"),
        ("aligner_config.params.depth", 3, "the rest of the model needs 2"),
        ("aligner_config.params.projector_type", "linear", "expected 'mlp_gelu', found 'linear'"),
        ("gen_aligner_config.params.input_dim", 4, "the rest of the model needs 8"),
        ("gen_aligner_config.params.n_embed", True, "expected a positive integer"),
    ],
)
def test_what_contradicts_the_rest_is_named(key: str, value: Any, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(changed(key, value))
    assert str(FILE) in str(caught.value)
    assert key.split(".")[0] in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["vision_config.params.width", "gen_vision_config.params.ch_mult"])
def test_a_size_that_no_preset_gives_must_be_there(key: str) -> None:
    content = tiny_config()
    part, _, size = key.split(".")
    del content[part]["params"][size]
    with pytest.raises(CheckpointError, match=f"{part}.params.{size}: missing"):
        read(content)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("vision_config", "use_qk_norm", True), ("vq_config", "double_latent", True), ("text_config", "head_dim", 16)],
)
def test_a_model_the_original_architecture_cannot_be_is_not_written(part: str, key: str, value: Any) -> None:
    config = copy.deepcopy(tiny_janus_of_both().config)
    setattr(getattr(config, part), key, value)
    with pytest.raises(CheckpointError, match=rf"layout=original: {part}\.{key} is {value}"):
        write_config(config, "float32")
