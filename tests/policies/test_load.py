"""Checkpoint directories and adapters on disk: what loads, what is refused, what other libraries read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from src import build
from src.config.schema import LoraConfig
from src.policies.janus import JanusPolicy
from src.policies.load import PATTERNS, find_checkpoint, load_janus, resolve_dtype
from src.policies.lora import target_pattern
from src.policies.weight_files import CheckpointError
from src.values import PLAN
from tests.policies.oracle import level_logps
from tests.policies.original import save_tiny_original, tiny_janus_of_both
from tests.policies.test_decoder import contexts, some_ids
from tests.policies.tiny import draw_adapter, save_tiny_checkpoint, tiny_janus, tiny_policy, tiny_tokenizer
from tests.tiny_run import default_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("janus"))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_a_loaded_checkpoint_is_the_saved_one(checkpoint: Path) -> None:
    policy = load_janus(checkpoint, lora={"r": 2})
    same = tiny_policy(lora={"r": 2}, adapter_scale=0.0)
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 5)
    assert torch.equal(context.ids, contexts(same, PLAN).ids)
    assert torch.equal(level_logps(policy.janus, PLAN, context, ids), level_logps(same.janus, PLAN, context, ids))
    assert (policy.end_id, policy.begin_of_image_id, policy.image_tokens) == (1, 4, 9)


def test_an_untied_lm_head_survives_a_config_that_does_not_say_so(copied: Path) -> None:
    """Janus-Pro's lm_head is untied and its config silent: transformers' default would overwrite it."""
    config = json.loads((copied / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    config["text_config"].pop("tie_word_embeddings", None)
    (copied / "config.json").write_text(json.dumps(config))
    janus = load_janus(copied, lora={"r": 2}).janus
    saved = tiny_janus()
    assert torch.equal(janus.lm_head.weight, saved.lm_head.weight)
    assert not torch.equal(janus.lm_head.weight, janus.model.language_model.embed_tokens.weight)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local Hugging Face cache with one repository of the original layout in it, and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--deepseek-ai--Janus-Pro-1B"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    save_tiny_original(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_without_a_path_the_repository_is_looked_up(cached: Path) -> None:
    assert find_checkpoint(None, "deepseek-ai/Janus-Pro-1B") == cached
    policy: Any = build.build_policy(default_config("model=janus_pro_1b", "model.repository=deepseek-ai/Janus-Pro-1B"))
    assert torch.equal(policy.janus.lm_head.weight, tiny_janus_of_both().lm_head.weight)
    # The base's place goes into adapters that are saved.
    assert policy.adapter.peft_config["default"].base_model_name_or_path == str(cached)


@pytest.mark.parametrize("repository", ["CaraJ/T2I-R1", None])
def test_a_repository_that_is_not_at_hand(cached: Path, repository: str | None) -> None:
    with pytest.raises(CheckpointError, match=r"model\.path") as caught:
        load_janus(None, repository)
    assert repository is None or f"hf download {repository}" in str(caught.value)


def test_a_local_copy_that_is_not_complete(cached: Path) -> None:
    (cached / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"contains no weights.*`hf download deepseek-ai/Janus-Pro-1B`"):
        load_janus(None, "deepseek-ai/Janus-Pro-1B")


def test_no_code_is_downloaded() -> None:
    from fnmatch import fnmatch

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in PATTERNS)

    needed = "config.json model-00001-of-00002.safetensors pytorch_model.bin tokenizer.json chat_template.jinja"
    assert all(wanted(name) for name in [*needed.split(), "additional_chat_templates/plan.jinja"])
    assert not any(wanted(name) for name in ("modeling_vlm.py", "janus/models/vq_model.py", "README.md"))


def test_bfloat16_on_request(checkpoint: Path) -> None:
    policy = load_janus(checkpoint, dtype="bfloat16", lora={"r": 2})
    assert policy.janus.lm_head.weight.dtype == torch.bfloat16


def test_weights_that_train_are_float32_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_dtype("auto", trains_weights=True) == torch.float32
    assert resolve_dtype("auto", trains_weights=False) == torch.bfloat16
    assert resolve_dtype("float32", trains_weights=False) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_dtype("auto", trains_weights=False) == torch.float32


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: shutil.rmtree(p), ["no such directory"]),
        (lambda p: (p / "config.json").unlink(), ["config.json", "not found"]),
        (lambda p: (p / "config.json").write_text("{"), ["config.json", "damaged"]),
        (lambda p: (p / "config.json").write_text('{"model_type": "llama"}'), ["'llama'", "'janus'"]),
        (lambda p: (p / "model.safetensors").unlink(), ["safetensors"]),
        (lambda p: (p / "model.safetensors").write_bytes(b"\0" * 40), ["cannot be loaded"]),
        (lambda p: (p / "tokenizer.json").unlink(), ["cannot be loaded"]),
    ],
)
def test_damage_is_told_with_the_path(copied: Path, damage: object, words: list[str]) -> None:
    damage(copied)  # type: ignore[operator]
    with pytest.raises(CheckpointError) as caught:
        load_janus(copied, lora={"r": 2})
    message = str(caught.value)
    assert str(copied) in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("broken", ["null", "[1, 2]", '"janus"'])
def test_a_config_that_is_no_object_is_damage_too(copied: Path, broken: str) -> None:
    (copied / "config.json").write_text(broken)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_janus(copied, lora={"r": 2})


def test_missing_weights_are_refused(copied: Path) -> None:
    """transformers would draw them at random and only warn."""
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.up_proj.weight"))
    del weights[name]
    save_file(weights, str(copied / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing: .*layers\.1\.mlp\.up_proj"):
        load_janus(copied, lora={"r": 2})


def test_lora_hits_the_language_model_only() -> None:
    import re

    names = [name for name, _ in tiny_janus().named_modules()]
    hit = [name for name in names if re.fullmatch(target_pattern(LoraConfig().targets), name)]
    assert len(hit) == 7 * 2
    assert all(".language_model.layers." in f".{name}" for name in hit)
    assert any("vision" in name and "q_proj" in name for name in names), "the trap shall be there"
    with pytest.raises(ValueError, match=r"model\.lora\.targets: unknown lm_head"):
        target_pattern(["q_proj", "lm_head"])


def test_an_adapter_is_read_by_plain_peft(tmp_path: Path) -> None:
    """The saved folder on the bare transformers model, without this project's code: the same log-probs."""
    from peft import PeftModel

    policy = tiny_policy(lora={"r": 4, "alpha": 12.0, "targets": ["q_proj", "v_proj", "up_proj"]})
    policy.adapter.save_pretrained(str(tmp_path / "adapter"))
    theirs = PeftModel.from_pretrained(tiny_janus(), str(tmp_path / "adapter")).base_model.model
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 6)
    ours = level_logps(policy.janus, PLAN, context, ids)
    torch.testing.assert_close(level_logps(theirs, PLAN, context, ids), ours, atol=1e-5, rtol=0)
    base = level_logps(tiny_janus(), PLAN, context, ids)
    assert (ours - base).abs().max() > 0.1


def test_training_goes_on_from_a_saved_adapter(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.adapter.save_pretrained(str(tmp_path / "adapter"))
    again = JanusPolicy(tiny_janus(), policy.tokenizer, adapter=tmp_path / "adapter")
    ours = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    theirs = {n: p for n, p in again.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_of_another_width_is_refused(tmp_path: Path) -> None:
    tiny_policy(hidden=64).adapter.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"model\.adapter=.*adapter: does not fit the base model"):
        JanusPolicy(tiny_janus(), tiny_tokenizer(), adapter=tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        JanusPolicy(tiny_janus(), tiny_tokenizer(), adapter=tmp_path)


def test_an_adapter_of_another_width_is_refused_before_any_weight_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import JanusForConditionalGeneration

    save_tiny_checkpoint(tmp_path / "base")
    tiny_policy(hidden=64).adapter.save_pretrained(str(tmp_path / "wide"))
    monkeypatch.setattr(JanusForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"does not fit the base model: .* made for a width of 128, .* has 64"):
        load_janus(tmp_path / "base", adapter=tmp_path / "wide")


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_of_another_depth_is_refused(tmp_path: Path, layers: int) -> None:
    """PEFT itself only warns: half of the adapter would silently be dropped, or stay as drawn."""
    policy = tiny_policy(layers=layers)
    draw_adapter(policy, 0.3)
    policy.adapter.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"model\.adapter=.*adapter: does not fit the base model"):
        JanusPolicy(tiny_janus(layers=2), tiny_tokenizer(), adapter=tmp_path / "adapter")
