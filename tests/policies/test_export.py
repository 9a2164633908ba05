"""Whole checkpoints in either layout, from bases of either layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from src.cli import command as cli
from src.config.schema import LoraConfig
from src.export.command import COMMAND
from src.policies.checkpoint import open_checkpoint
from src.policies.export import write_adapter, write_merged, write_trained
from src.policies.janus import JanusPolicy
from src.policies.original_config import has_presets
from src.policies.weight_files import CheckpointError
from src.values import LEVELS
from tests.policies.oracle import level_logps
from tests.policies.original import (
    LANGUAGE_1B,
    PRO_1B,
    TINY,
    dropped_shapes,
    needed_shapes,
    published_config,
    save_tiny_original,
    tiny_config,
    tiny_janus_of_both,
    tiny_original,
)
from tests.policies.test_decoder import contexts, some_ids
from tests.policies.tiny import draw_adapter, templated_tokenizer

LAYOUTS = ("transformers", "original")
PARTS = ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in each layout."""
    own = tmp_path_factory.mktemp("own")
    tiny_janus_of_both().save_pretrained(own)
    templated_tokenizer().save_pretrained(own)
    return {"transformers": own, "original": save_tiny_original(tmp_path_factory.mktemp("original"))}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that does something."""
    policy: Any = JanusPolicy(tiny_janus_of_both(), templated_tokenizer(), lora=LoraConfig(r=4))
    draw_adapter(policy, 0.15)
    # In a folder of its own: what lies beside an adapter may be the run that made it.
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    policy.adapter.save_pretrained(str(folder))
    return folder


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def logps(janus: Any) -> dict[str, Tensor]:
    """Log-probs of text and image tokens after a prompt."""
    policy = JanusPolicy(janus, templated_tokenizer(), lora=LoraConfig(r=1))
    return {level: level_logps(policy.janus, level, contexts(policy, level), some_ids(level, 4, 5)) for level in LEVELS}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def loaded(folder: Path) -> Any:
    return open_checkpoint(folder).model(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_the_original_layout_and_back_every_bit_is_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also of the weights transformers' Janus has no place for."""
    weights = {name: value.to(dtype) for name, value in tiny_original().items()}
    base = save_tiny_original(tmp_path / "base", weights)
    write_trained({}, base, made(tmp_path / "out"), layout="original")
    assert same(load_file(tmp_path / "out/model.safetensors"), weights)
    config = json.loads((tmp_path / "out/config.json").read_text())
    wanted = tiny_config()
    wanted["torch_dtype"] = wanted["language_config"]["torch_dtype"] = str(dtype).removeprefix("torch.")
    assert config == wanted


def test_by_way_of_the_transformers_layout_only_the_unused_weights_are_lost(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    write_trained({}, bases["original"], made(tmp_path / "own"))
    write_trained({}, tmp_path / "own", made(tmp_path / "back"), layout="original")
    back, weights = load_file(tmp_path / "back/model.safetensors"), tiny_original()
    used = back.pop("gen_vision_model.quantize.codebook_used")
    # As the released VectorQuantizer starts.
    assert torch.equal(used, torch.zeros(65536))
    assert same(back, {name: weights[name] for name in needed_shapes(TINY)})
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert all(config[f"{part}_config"] == tiny_config()[f"{part}_config"] for part in PARTS)
    assert config["language_config"].items() >= tiny_config()["language_config"].items()


@pytest.mark.parametrize("base", LAYOUTS)
def test_an_adapter_merged_says_the_same_in_either_layout(
    tmp_path: Path, bases: dict[str, Path], adapter: Path, base: str
) -> None:
    for layout in LAYOUTS:
        write_merged(adapter, bases[base], made(tmp_path / layout), layout=layout)
    original, own = logps(loaded(tmp_path / "original")), logps(loaded(tmp_path / "transformers"))
    before = logps(loaded(bases[base]))
    for level in LEVELS:
        assert torch.equal(original[level], own[level])
        assert (own[level] - before[level]).abs().max() > 1e-2
    names = set(load_file(tmp_path / "original/model.safetensors"))
    assert names >= needed_shapes(TINY).keys()
    assert (dropped_shapes(TINY).keys() <= names) == (base == "original")


@pytest.mark.parametrize("base", LAYOUTS)
def test_what_is_written_in_transformers_layout_is_read_by_transformers(
    tmp_path: Path, bases: dict[str, Path], base: str
) -> None:
    from transformers import AutoTokenizer, JanusForConditionalGeneration

    write_trained({}, bases[base], made(tmp_path / "out"))
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert same(theirs.state_dict(), tiny_janus_of_both().state_dict())
    assert not theirs.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a red circle")["input_ids"] == templated_tokenizer()("a red circle")["input_ids"]
    assert {"plan", "image"} <= set(tokenizer.chat_template)
    assert (tokenizer.boi_token, tokenizer.eoi_token) == ("<begin_of_image>", "<end_of_image>")


def test_from_the_original_layout_come_processor_and_generation_settings(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    from transformers import AutoProcessor, GenerationConfig

    write_trained({}, bases["original"], made(tmp_path / "out"))
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "JanusProcessor"
    assert (processor.image_start_token, processor.num_image_tokens) == ("<begin_of_image>", 9)
    assert dict(processor.image_processor.size) == {"height": 12, "width": 12}
    assert list(processor.image_processor.image_mean) == [0.5, 0.5, 0.5]
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert settings.generation_kwargs == {"boi_token_id": 4}


def test_to_the_original_layout_goes_the_processor_of_the_released_code(tmp_path: Path, bases: dict[str, Path]) -> None:
    write_trained({}, bases["original"], made(tmp_path / "own"))
    write_trained({}, tmp_path / "own", made(tmp_path / "back"), layout="original")
    images = json.loads((tmp_path / "back/preprocessor_config.json").read_text())
    assert images == {
        "background_color": [127, 127, 127], "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "VLMImageProcessor", "image_size": 12, "min_size": 14,
        "processor_class": "VLChatProcessor", "rescale_factor": pytest.approx(1 / 255),
    }  # fmt: skip
    chat = json.loads((tmp_path / "back/processor_config.json").read_text())
    assert (chat["processor_class"], chat["num_image_tokens"], chat["sft_format"]) == ("VLChatProcessor", 9, "deepseek")
    assert not (tmp_path / "back/generation_config.json").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trained_weights_and_a_dtype_reach_either_layout(tmp_path: Path, bases: dict[str, Path], layout: str) -> None:
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    trained = torch.randn(64, 32, generator=torch.Generator().manual_seed(4))
    write_trained({name: trained}, bases["original"], made(tmp_path / "out"), "bfloat16", layout)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert (checkpoint.layout, checkpoint.dtype) == (layout, torch.bfloat16)
    assert torch.equal(checkpoint.weights[name], trained.bfloat16())
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(CheckpointError, match="does not fit the base"):
        write_trained({name: trained.T}, bases["original"], tmp_path / "out", layout=layout)


def test_the_page_says_who_can_read_it(tmp_path: Path, bases: dict[str, Path], adapter: Path) -> None:
    write_trained({}, bases["transformers"], made(tmp_path / "out"), layout="original")
    assert "none of the released code's presets" in (tmp_path / "out/README.md").read_text()
    assert has_presets(published_config(PRO_1B, LANGUAGE_1B))
    assert not has_presets(tiny_config())
    for layout, told in (("transformers", False), ("original", True)):
        write_adapter(adapter, bases[layout], made(tmp_path / layout))
        assert ("which transformers does not read" in (tmp_path / layout / "README.md").read_text()) == told


def test_code_of_the_base_is_not_copied(tmp_path: Path) -> None:
    base = save_tiny_original(tmp_path / "base")
    (base / "modeling_vlm.py").write_text("")
    write_trained({}, base, made(tmp_path / "out"), layout="original")
    assert not list((tmp_path / "out").glob("*.py"))


def test_the_command_writes_the_layout_asked_for(
    tmp_path: Path, bases: dict[str, Path], adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"adapter={adapter}", f"base={bases['transformers']}", f"out={tmp_path / 'out'}"]
    for wrong, words in (
        (["layout=original"], "layout=original: an adapter has no layout"),
        (["layout=onnx", "merge=true"], "layout=onnx: expected one of transformers, original"),
    ):
        capsys.readouterr()
        assert cli.run(COMMAND, [*given, *wrong]) == 2
        assert words in capsys.readouterr().err
    code = cli.run(COMMAND, [*given, "layout=original", "merge=true"])
    assert (code, capsys.readouterr().err) == (0, "")
    assert open_checkpoint(tmp_path / "out").layout == "original"
