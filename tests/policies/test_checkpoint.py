"""Both layouts give the same model; what does not fit is told before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.policies.checkpoint import JanusCheckpoint, layout_of, open_checkpoint, read_tokenizer
from src.policies.load import load_janus
from src.policies.weight_files import CheckpointError
from src.values import IMAGE, LEVELS, PLAN
from tests.policies.oracle import level_logps
from tests.policies.original import save_tiny_original, tiny_config, tiny_janus_of_both, tiny_original
from tests.policies.test_decoder import contexts, some_ids
from tests.policies.tiny import SPECIAL, templated_tokenizer

SPECIAL_TOKENS = [*SPECIAL.values(), "<begin_of_image>", "<end_of_image>", "<image_placeholder>"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model in transformers' layout and in the original one."""
    own = tmp_path_factory.mktemp("own")
    tiny_janus_of_both().save_pretrained(own)
    templated_tokenizer().save_pretrained(own)
    return own, save_tiny_original(tmp_path_factory.mktemp("original"))


@pytest.fixture
def original(saved: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[1], tmp_path / "original"))


@pytest.fixture
def own(saved: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "own"))


def as_safetensors(folder: Path) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()


def as_shards(folder: Path) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(sorted(weights))}
    for file in set(places.values()):
        torch.save({name: weights[name] for name in weights if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def with_rotary_frequencies(folder: Path) -> None:
    """As transformers up to 4.31 wrote them beside the weights."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    torch.save(weights, folder / "pytorch_model.bin")


def untouched(folder: Path) -> None:
    pass


@pytest.mark.parametrize("form", [untouched, as_safetensors, as_shards, with_rotary_frequencies])
def test_text_and_image_tokens_have_equal_logits_in_both_layouts(
    saved: tuple[Path, Path], original: Path, form: Callable[[Path], None]
) -> None:
    form(original)
    ours, theirs = load_janus(saved[0], lora={"r": 2}), load_janus(original, lora={"r": 2})
    assert layout_of(original) == "original"
    for level in LEVELS:
        context, ids = contexts(ours, level), some_ids(level, 4, 5)
        assert torch.equal(context.ids, contexts(theirs, level).ids)
        logps = level_logps(theirs.janus, level, context, ids)
        assert torch.equal(logps, level_logps(ours.janus, level, context, ids))
        assert logps.std() > 0.1
    codes = some_ids(IMAGE, 2, 9)
    assert torch.equal(theirs.paint(codes), ours.paint(codes))
    ends = ("end_id", "pad_id", "begin_of_image_id", "image_tokens")
    assert [getattr(ours, name) for name in ends] == [getattr(theirs, name) for name in ends] == [1, 2, 4, 9]


def test_what_is_looked_at_has_equal_features_and_codes_in_both_layouts(saved: tuple[Path, Path]) -> None:
    """Vision tower, aligner and the image tokenizer's encoder, which training never runs."""
    ours, theirs = (open_checkpoint(folder).model(torch.float32) for folder in saved)
    pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        seen = [m.model.aligner(m.model.vision_model(pixels).last_hidden_state) for m in (ours, theirs)]
        codes = [m.model.vqmodel.encode(pixels).image_tokens for m in (ours, theirs)]
    assert torch.equal(*seen)
    assert torch.equal(*codes)
    assert seen[0].std() > 0


def test_the_original_layout_gets_what_transformers_generates_images_with(saved: tuple[Path, Path]) -> None:
    settings = open_checkpoint(saved[1]).model(torch.float32).generation_config
    assert settings.generation_kwargs == {"boi_token_id": 4}
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (0, 1, 2)


@pytest.mark.parametrize("place", [0, 1], ids=["transformers", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_takes_one_copy_of_the_weights(saved: tuple[Path, Path], place: int, dtype: torch.dtype) -> None:
    """Each parameter owns its bytes and no more: no view keeps a whole qkv or a mapped file alive."""
    checkpoint = open_checkpoint(saved[place])
    janus = checkpoint.model(dtype)
    mapped = {value.untyped_storage().data_ptr() for value in checkpoint.weights.values()}
    storages = set()
    for name, parameter in janus.named_parameters():
        storage = parameter.untyped_storage()
        assert parameter.dtype == dtype
        assert storage.nbytes() == parameter.numel() * parameter.element_size(), name
        assert storage.data_ptr() not in mapped, name
        storages.add(storage.data_ptr())
    assert len(storages) == len(list(janus.parameters()))


def test_code_beside_the_weights_is_not_run(original: Path) -> None:
    trace = original / "it was run"
    for name in ("modeling_vlm.py", "tokenization.py", "configuration.py"):
        (original / name).write_text(f"open({str(trace)!r}, 'w').close()\nclass Model: pass\n")
    config = tiny_config() | {"auto_map": {"AutoConfig": "configuration.Model", "AutoModel": "modeling_vlm.Model"}}
    (original / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((original / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["tokenization.Model", "tokenization.Model"]}}
    (original / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    load_janus(original, lora={"r": 2})
    assert not trace.exists()


# --- the tokenizer -------------------------------------------------------------------------------------------------


def byte_level_tokenizer(folder: Path) -> Any:
    """A tokenizer.json as DeepSeek's: byte-level BPE, while the config beside it names LlamaTokenizerFast."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet)
    backend.train_from_iterator(["a red circle left of a blue square"] * 3, trainer)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "legacy": True, "pad_token": None}
    config |= {"bos_token": SPECIAL["bos_token"], "eos_token": SPECIAL["eos_token"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return backend


def test_the_tokenizer_splits_as_its_own_file_says(tmp_path: Path) -> None:
    backend = byte_level_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "multi_modality"}))
    tokenizer = read_tokenizer(tmp_path)
    text = "a red circle\n\n left of  a café"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    # Nothing names a pad token; Janus's own stands in.
    assert tokenizer.pad_token_id == backend.token_to_id("<｜▁pad▁｜>")


def without(token: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["vocab"] = {f"{k}?" if k == token else k: i for k, i in content["model"]["vocab"].items()}
        content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != token]
        (folder / "tokenizer.json").write_text(json.dumps(content))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        roles = {key: value for key, value in config.items() if value != token}
        (folder / "tokenizer_config.json").write_text(json.dumps(roles))

    return change


# --- what is refused -----------------------------------------------------------------------------------------------


def config_with(**keys: Any) -> Callable[[Path], None]:
    """A change of config.json; a__b is key b of object a."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        for key, value in keys.items():
            *path, last = key.split("__")
            place = content
            for step in path:
                place = place[step]
            place[last] = value
        (folder / "config.json").write_text(json.dumps(content))

    return change


def processor(name: str, content: dict[str, Any]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(content)) and None


def weights_with(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        if (folder / "model.safetensors").is_file():
            weights = load_file(folder / "model.safetensors")
            change(weights)
            save_file(weights, folder / "model.safetensors")
        else:
            weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
            change(weights)
            torch.save(weights, folder / "pytorch_model.bin")

    return apply


def drop(*parts: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: [weights.pop(name) for name in list(weights) if any(part in name for part in parts)]


def check_refused(
    folder: Path, damage: Callable[[Path], Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the directory and all of `words`, before any weight is read."""
    damage(folder)
    monkeypatch.setattr(JanusCheckpoint, "model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError) as caught:
        load_janus(folder, lora={"r": 2})
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert not [word for word in words if word not in message], message


QKV = "vision_model.vision_tower.blocks.0.attn.qkv.weight"
ORIGINAL_REFUSED = [
    (config_with(model_type="llama"), ["config.json", "'llama'", "'janus'", "'multi_modality'"]),
    (config_with(model_type=None), ["config.json", "None"]),
    (config_with(gen_vision_config=None), ["gen_vision_config", "missing"]),
    (
        config_with(vision_config__params__image_size=24),
        ["vision_model.vision_tower.pos_embed (1, 9, 16) instead of (1, 36, 16)"],
    ),
    (config_with(vision_config__params__patch_size=6), ["2 x 2 image tokens are painted as 8 x 8 pixels", "12"]),
    (config_with(gen_head_config__params__image_token_size=20), ["the head has 20 image tokens, the codebook 24"]),
    (processor("preprocessor_config.json", {"image_size": 384}), ["preprocessor_config.json", "384", "12"]),
    (processor("processor_config.json", {"num_image_tokens": 576}), ["processor_config.json", "576", "9"]),
    (weights_with(drop("blocks.0.norm1", "gen_embed")), ["3 missing: gen_embed.weight, vision_model.vision_tower"]),
    (weights_with(lambda w: w.update({"vision_tower_high.x": torch.zeros(1)})), ["1 unexpected: vision_tower_high.x"]),
    (weights_with(lambda w: w.update({QKV: torch.zeros(47, 16)})), [f"{QKV} (47, 16) instead of (48, 16)"]),
    (
        weights_with(lambda w: w.update({"gen_head.vision_head.weight": torch.zeros(20, 32)})),
        ["codebook 24 (gen_vision_model.quantize.embedding.weight)", "head 20 (gen_head.vision_head.weight)"],
    ),
    (weights_with(drop("language_model")), ["21 missing", "... (16 more)"]),
    (without("<begin_of_image>"), ["tokenizer.json", "no begin-of-image token"]),
    (without("<image_placeholder>"), ["tokenizer.json", "no token '<image_placeholder>'"]),
    (without("<｜▁pad▁｜>"), ["tokenizer.json", "no pad token"]),
    (config_with(language_config__vocab_size=4), ["special token id 4", "vocab_size is 4"]),
    (lambda p: (p / "tokenizer.json").unlink(), ["tokenizer.json: not found"]),
    (lambda p: (p / "tokenizer.json").write_text("{"), ["its tokenizer cannot be loaded"]),
]


@pytest.mark.parametrize(("damage", "words"), ORIGINAL_REFUSED)
def test_an_original_checkpoint_that_does_not_fit_is_refused(
    original: Path, damage: Callable[[Path], Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_refused(original, damage, words, monkeypatch)


CODEBOOK = "model.vqmodel.quantize.embedding.weight"
REFUSED = [
    (config_with(vq_config__num_patches=24), ["vq_config.num_patches is 24", "image_size / patch_size = 3"]),
    (config_with(vision_config__image_size=13), ["image_size 13 is not a multiple of patch_size 4"]),
    (config_with(vision_config__num_image_tokens=576), ["num_image_tokens is 576, an image has 3 x 3"]),
    (config_with(vq_config__channel_multiplier=[1, 2]), ["3 x 3 image tokens are painted as 6 x 6 pixels"]),
    (config_with(vq_config__projection_dim=64), ["vq_config.projection_dim is 64, text_config.hidden_size 32"]),
    (config_with(vq_config__num_embeddings=48), ["4 of another shape", f"{CODEBOOK} (24, 8) instead of (48, 8)"]),
    (config_with(vision_config=[]), ["not a Janus config"]),
    (weights_with(lambda w: w.update({CODEBOOK: torch.zeros(23, 8)})), ["codebook 23", "generation head 24"]),
    (weights_with(lambda w: w.update({"model.extra.weight": torch.zeros(1)})), ["1 unexpected: model.extra.weight"]),
    (weights_with(drop("lm_head")), ["1 missing: lm_head.weight"]),
    (
        processor("processor_config.json", {"image_processor": {"size": {"height": 384, "width": 384}}}),
        ["processor_config.json", "image size is 384, config.json's is 12"],
    ),
]


@pytest.mark.parametrize(("damage", "words"), REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused(
    own: Path, damage: Callable[[Path], Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_refused(own, damage, words, monkeypatch)


def test_the_files_of_the_layouts_hold_other_names(saved: tuple[Path, Path]) -> None:
    """What makes the equalities above say something."""
    theirs, ours = tiny_original(), load_file(saved[0] / "model.safetensors")
    assert not theirs.keys() & ours.keys()
    assert {PLAN, IMAGE} == set(LEVELS)
