"""Every kind of adapter is what plain PEFT makes of it: rollout, training, reference, merge, export; or refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.policies.adapter_files import check_adapter_directory, check_adapter_fits, check_adapter_tensors
from src.policies.agreement import check_agreement, check_decoder
from src.policies.export import write_adapter as export_adapter
from src.policies.export import write_merged
from src.policies.janus import JanusPolicy
from src.policies.load import load_janus
from src.policies.lora import adapters_off, lora_layers
from src.policies.switching import adapter_decoder, add_adapter, base_decoder
from src.text import bounded_work
from src.values import IMAGE, PLAN, Sampling, TokenLevel
from tests.policies.adapters import HONOURED, REFUSED, change_config, plain_peft, write_adapter
from tests.policies.oracle import level_logps, log_softmax
from tests.policies.test_decoder import contexts, some_ids, stepwise_logps
from tests.policies.tiny import exact_norms, save_tiny_checkpoint, templated_tokenizer, tiny_janus

LEVELS = (PLAN, IMAGE)
# Everything is compared in float64, whatever the processor rounds. Merged weights are written in float32: each is off
# by 6e-8 of itself, which changes log-probs by 5e-6. Adapters that were ignored in part were off by 1.3 to 12 nats.
EXACT = 1e-10
MERGED = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each kind; a kind that PEFT itself does not write is a plain one that says it is of it."""
    home, made = tmp_path_factory.mktemp("adapters"), {}
    for kind, settings in {**HONOURED, **{kind: one for kind, (one, _) in REFUSED.items()}}.items():
        folder = home / kind.replace(" ", "-")
        if kind == "replicated layers":
            made[kind] = change_config(write_adapter(folder, {}), **settings)
        else:
            made[kind] = write_adapter(folder, settings)
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("base"))


def exact(model: Any) -> Any:
    """The model (a policy, or transformers' own) in float64 throughout."""
    exact_norms(model.double())
    return model


def loaded(folder: Path, merge: bool | None = None, dtype: torch.dtype = torch.float32) -> JanusPolicy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return JanusPolicy(tiny_janus(dtype=dtype), templated_tokenizer(), adapter=folder, merge_rollout=merge)


def training_level(policy: JanusPolicy, level: str) -> TokenLevel:
    context, ids = contexts(policy, level), some_ids(level, 4, 7)
    zeros = torch.zeros(ids.shape)
    return TokenLevel(context, ids, torch.ones_like(ids, dtype=torch.bool), zeros, zeros, Sampling())


def training_logps(policy: JanusPolicy, level: str) -> Tensor:
    return log_softmax(policy({level: training_level(policy, level)})[level].logits())


@torch.no_grad()
def all_paths(policy: JanusPolicy, level: str) -> dict[str, Tensor]:
    context, ids = contexts(policy, level), some_ids(level, 4, 7)
    with policy.reference() as decoder:
        reference = stepwise_logps(decoder, level, context, ids)
    return {
        "rollout": stepwise_logps(policy.decoder(), level, context, ids),
        "training": training_logps(policy, level),
        "reference": reference,
    }


def by_peft(model: Any, level: str, policy: JanusPolicy) -> dict[str, Tensor]:
    """The same by plain PEFT."""
    context, ids = contexts(policy, level), some_ids(level, 4, 7)
    with model.disable_adapter():
        bare = level_logps(model.base_model.model, level, context, ids)
    beside = level_logps(model.base_model.model, level, context, ids)
    return {"rollout": beside, "training": beside, "reference": bare}


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("kind", HONOURED)
def test_an_honoured_kind_is_what_peft_makes_of_it(folders: dict[str, Path], kind: str, merge: bool) -> None:
    policy, theirs = exact(loaded(folders[kind], merge)), exact(plain_peft(folders[kind]))
    for level in LEVELS:
        wanted = by_peft(theirs, level, policy)
        assert (wanted["rollout"] - wanted["reference"]).abs().max() > 0.5, "the adapter does something"
        for path, found in all_paths(policy, level).items():
            torch.testing.assert_close(found, wanted[path], atol=EXACT, rtol=0, msg=lambda m, p=path: f"{p}: {m}")
    check_agreement(policy, kind)


@pytest.mark.parametrize("kind", HONOURED)
def test_an_honoured_kind_decodes_unmerged_in_bfloat16(folders: dict[str, Path], kind: str) -> None:
    policy = loaded(folders[kind], dtype=torch.bfloat16)
    theirs = plain_peft(folders[kind], torch.bfloat16)
    for level in LEVELS:
        wanted = by_peft(theirs, level, policy)
        for path, found in all_paths(policy, level).items():
            # Some roundings of 2^-8 of logits of up to 10; the adapters change 1 to 11 nats.
            assert (found - wanted[path]).square().mean().sqrt() < 0.05, path
    check_agreement(policy, kind)


@pytest.mark.parametrize("kind", HONOURED)
def test_whatever_is_trained_has_a_gradient(folders: dict[str, Path], kind: str) -> None:
    """Plain DDP fails at a parameter without one, and so does nobody else, without a word."""
    policy = loaded(folders[kind])
    sum(training_logps(policy, level).square().sum() for level in LEVELS).backward()  # type: ignore[union-attr]
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("kind", HONOURED)
def test_merge_and_export_are_what_peft_makes_of_it(
    folders: dict[str, Path], base: Path, kind: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import JanusForConditionalGeneration

    policy, theirs = loaded(folders[kind]), exact(plain_peft(folders[kind]))
    for out in (tmp_path / "merged", tmp_path / "adapter", tmp_path / "saved"):
        out.mkdir()
    write_merged(folders[kind], base, tmp_path / "merged")
    export_adapter(folders[kind], base, tmp_path / "adapter")
    # What a run writes at its end.
    policy.adapter.save_pretrained(str(tmp_path / "saved"))
    merged = JanusForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    own = JanusForConditionalGeneration.from_pretrained(base, tie_word_embeddings=False)
    exported = PeftModel.from_pretrained(own, str(tmp_path / "adapter")).eval().base_model.model
    saved = plain_peft(tmp_path / "saved").base_model.model
    bounds = {"merged": MERGED, "exported": EXACT, "saved": EXACT}
    for level in LEVELS:
        wanted = by_peft(theirs, level, policy)["rollout"]
        context, ids = contexts(policy, level), some_ids(level, 4, 7)
        for name, model in (("merged", merged), ("exported", exported), ("saved", saved)):
            found = level_logps(exact(model), level, context, ids)
            torch.testing.assert_close(found, wanted, atol=bounds[name], rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("merge", [True, False])
def test_beside_each_other_on_one_base(folders: dict[str, Path], base: Path, merge: bool) -> None:
    """As `src.evaluate` holds them: each adapter alone is itself, and the base is bare."""
    policy = load_janus(base, lora={}, merge_rollout=merge)
    for number, kind in enumerate(HONOURED):
        add_adapter(policy, folders[kind], f"number_{number}")
    exact(policy)
    for number, kind in enumerate(HONOURED):
        with adapter_decoder(policy, f"number_{number}") as decoder:
            check_decoder(decoder, policy.decoding_janus, kind)
            for level in LEVELS:
                context, ids = contexts(policy, level), some_ids(level, 4, 7)
                wanted = by_peft(exact(plain_peft(folders[kind])), level, policy)["rollout"]
                torch.testing.assert_close(stepwise_logps(decoder, level, context, ids), wanted, atol=EXACT, rtol=0)
    with base_decoder(policy) as decoder, adapters_off(policy.adapter):
        check_decoder(decoder, policy.decoding_janus, "base")
    with pytest.raises(ValueError, match=r"has adapters on model\.generation_aligner"):
        add_adapter(policy, folders["aligner"], "refused")


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_kind_is_refused_by_name_before_weights_are_loaded(
    folders: dict[str, Path], base: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import JanusForConditionalGeneration

    monkeypatch.setattr(JanusForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its words are compared below)
        load_janus(base, adapter=folders[kind])
    assert REFUSED[kind][1] in str(caught.value)


MERGED_ONLY = ("all-linear", "generation head", "aligner", "lm_head")


@pytest.mark.parametrize("kind", MERGED_ONLY)
def test_what_is_refused_for_its_modules_can_be_merged(
    folders: dict[str, Path], base: Path, kind: str, tmp_path: Path
) -> None:
    """The way out that the message names: the merged checkpoint is what PEFT makes of the adapter."""
    with pytest.raises(ValueError, match=r"python -m src\.export adapter=.* merge=true"):
        loaded(folders[kind])
    write_merged(folders[kind], base, tmp_path)
    policy, theirs = exact(load_janus(tmp_path, lora={})), exact(plain_peft(folders[kind]))
    for level in LEVELS:
        wanted = by_peft(theirs, level, policy)["rollout"]
        for path, found in all_paths(policy, level).items():
            torch.testing.assert_close(found, wanted, atol=MERGED, rtol=0, msg=lambda m, p=path: f"{p}: {m}")


def test_every_setting_of_peft_is_known_or_refused(tmp_path: Path) -> None:
    """Whatever this PEFT or the next one adds: a value that is not the default is refused by its name."""
    from dataclasses import fields

    from peft import LoraConfig

    folder = write_adapter(tmp_path / "adapter", {})
    check_adapter_directory(folder)
    plain = (folder / "adapter_config.json").read_text(encoding="utf-8")
    honoured = (
        "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules"
        " exclude_modules lora_alpha lora_dropout use_rslora init_lora_weights layers_to_transform layers_pattern"
        " rank_pattern alpha_pattern megatron_config megatron_core qalora_group_size runtime_config"
        " ensure_weight_tying"
    ).split()
    for name in [*(item.name for item in fields(LoraConfig)), "of_a_later_version"]:
        if name in honoured:
            continue
        for value in (True, [1], {"a": 1}, "all", 3):
            (folder / "adapter_config.json").write_text(plain, encoding="utf-8")
            with pytest.raises(ValueError, match=f"{name}=.*not supported"):
                check_adapter_directory(change_config(folder, **{name: value}))


# Each takes longer on some module's name than anybody waits: 2^30 ways and more to try.
ENDLESS = r"([\w.]+)+!"


@pytest.mark.parametrize(
    ("key", "value", "way"),
    [
        ("target_modules", ENDLESS, "checkpoint"),
        ("target_modules", ENDLESS, "beside"),
        ("target_modules", r"([\w.]|[\w.][\w.])*!|.*language_model.*q_proj", "model"),
        ("target_modules", r"(?=(.*.*.*.*.*.*.*.*.*.*!))?.*language_model.*q_proj", "model"),
        ("exclude_modules", ENDLESS, "model"),
        ("rank_pattern", {"q_proj": 2, ENDLESS: 4}, "model"),
        ("alpha_pattern", {ENDLESS: 4}, "model"),
        ("layers_pattern", ENDLESS, "model"),
        ("layers_pattern", ["layers", f"({ENDLESS})"], "model"),
    ],
)
def test_a_pattern_without_an_end_is_refused_in_time(
    folders: dict[str, Path],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: Any,
    way: str,
) -> None:
    """In whatever way it comes in, and with a checkpoint before a weight is read."""
    monkeypatch.setattr(bounded_work, "SECONDS", 1)
    others = {"layers_to_transform": [0], "target_modules": ["q_proj"]} if key == "layers_pattern" else {}
    folder = change_config(shutil.copytree(folders["plain"], tmp_path / "adapter"), **others, **{key: value})
    shapes = {name: tensor.shape for name, tensor in load_file(base / "model.safetensors").items()}
    plain = loaded(folders["plain"])
    ways: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: check_adapter_fits(folder, shapes, base),
        "model": lambda: loaded(folder),
        "beside": lambda: add_adapter(plain, folder, "another"),
    }
    with pytest.raises(ValueError, match=rf"adapter_config.json: {key}=.*: as a pattern .* was stopped"):
        ways[way]()


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "layers_pattern"])
@pytest.mark.parametrize("text", ["(q_proj", "+*", "[" * 3, "(" * 2000 + ")" * 2000])
def test_what_is_no_pattern_is_told(folders: dict[str, Path], tmp_path: Path, key: str, text: str) -> None:
    others = {"layers_to_transform": [0], "target_modules": ["q_proj"]} if key == "layers_pattern" else {}
    value = {text: 4} if key == "rank_pattern" else text
    folder = change_config(shutil.copytree(folders["plain"], tmp_path / "adapter"), **others, **{key: value})
    with pytest.raises(ValueError, match=rf"adapter_config.json: {key}=.*(cannot be used|goes too deep)"):
        loaded(folder)


def test_patterns_that_people_write_are_read(base: Path, tmp_path: Path) -> None:
    """Unsloth's way of writing them, and one of every module's full name with its rank."""
    names = [name for name, _ in tiny_janus().named_modules() if name.endswith("_proj") and "language_model" in name]
    usual = r"(?:.*?(?:language).*?(?:self_attn|mlp).*?(?:q_proj|k_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.x)"
    for number, settings in enumerate(
        ({"target_modules": usual}, {"rank_pattern": {rf"^{name}$".replace(".", r"\."): 2 for name in names}})
    ):
        folder = write_adapter(tmp_path / str(number), settings)
        assert lora_layers(load_janus(base, adapter=folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", 2.5),
        ("r", "4"),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", None),
        ("lora_alpha", True),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", [3]),
        ("alpha_pattern", {"q_proj": 0.0}),
        ("alpha_pattern", {"q_proj": float("nan")}),
        ("task_type", "SEQ_CLS"),
        ("init_lora_weights", "pissa"),
    ],
)
def test_ranks_and_scales_that_do_nothing_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    folder = change_config(write_adapter(tmp_path / "adapter", {}), **{key: value})
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {key}"):
        check_adapter_directory(folder)


def with_tensor(folder: Path, part: str, value: float) -> str:
    """Spoil the first tensor whose name has `part`; returns its name."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if part in name)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["lora_A", "lora_B", "layers.1.mlp.down_proj.lora_A"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, base: Path, part: str, value: float) -> None:
    folder = write_adapter(tmp_path / "adapter", {})
    name = with_tensor(folder, part, value)
    for load in (
        lambda: load_janus(base, adapter=folder),
        lambda: check_adapter_fits(folder, {}, base),
        lambda: add_adapter(load_janus(base, lora={}), folder, "x"),
        lambda: write_merged(folder, base, tmp_path),
    ):
        with pytest.raises(ValueError, match="NaN or infinity") as caught:
            load()
        assert name in str(caught.value)


def test_a_layer_that_can_never_learn_is_named(tmp_path: Path) -> None:
    """Fresh adapters have B = 0. With A = 0 as well, neither has a gradient."""
    folder = write_adapter(tmp_path / "adapter", {}, scale=0.0)
    check_adapter_tensors(folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_A" in name)
    tensors[name].zero_()
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj: lora_A and lora_B are both 0"):
        check_adapter_tensors(folder)


def test_dropout_is_set_to_0_and_said(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"lora_dropout=0\.4 is set to 0"):
        policy = JanusPolicy(tiny_janus(), templated_tokenizer(), adapter=folders["dropout"])
    policy.adapter.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0
    # Even where something puts the modules into training mode.
    policy.train()
    assert torch.equal(training_logps(policy, PLAN), training_logps(policy, PLAN))


def test_what_reads_pictures_is_frozen_said_and_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["vision tower too"]
    with pytest.warns(UserWarning, match=r"4 of its modules read pictures, such as model\..*frozen"):
        policy = JanusPolicy(tiny_janus(), templated_tokenizer(), adapter=folder)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2  # A and B, q and v, two layers
    assert not any("vision" in name for name in trained)
    # PEFT's own way to disable adapters would make all of them trainable.
    check_agreement(policy, "x")
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trained
    policy.adapter.save_pretrained(str(tmp_path))
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_layer_is_left_in_training_mode(folders: dict[str, Path]) -> None:
    for kind in HONOURED:
        policy = loaded(folders[kind])
        assert not any(layer.training for layer in lora_layers(policy.network)), kind


def test_a_damaged_file_is_told_with_its_path(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(folders["plain"], folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match=r"model\.adapter=.*adapter: damaged"):
        check_adapter_tensors(folder)
