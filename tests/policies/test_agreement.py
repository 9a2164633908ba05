"""The check after loading sees what the adapter's files did not say, names the path, and lets rounding pass."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from src import build
from src.config.schema import LoraConfig
from src.policies import lora
from src.policies.agreement import (
    Disagreement,
    check_agreement,
    check_decoder,
    check_merged,
    fixed_logps,
    fixed_tokens,
    module_logps,
)
from src.policies.janus import JanusPolicy
from src.policies.load import load_janus
from src.values import IMAGE, PLAN
from tests.conftest import ROOT
from tests.policies.adapters import HONOURED, REFUSED, write_adapter
from tests.policies.oracle import level_logps
from tests.policies.test_reference import train_a_little
from tests.policies.tiny import draw_adapter, save_tiny_checkpoint, templated_tokenizer, tiny_janus, tiny_policy
from tests.tiny_run import default_config

EMBEDDED = ROOT / "src/shapes/checkpoint"

# What goes wrong with a kind if it is loaded all the same: the path that the check names first, merged and unmerged.
WRONG = {
    "all-linear": "training",
    "generation head": "training",
    "aligner": "the reference",
    "lm_head": "training",
    "dora": "the rollout",
    "bias of B": "the rollout",
    "alora": "the rollout",
    "modules to save": "the reference",
    "tokens": "the reference",
}


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters as they were loaded before their files were checked."""
    for name in ("check_adapter_directory", "check_adapter_tensors"):
        monkeypatch.setattr(lora, name, lambda *_: None)
    monkeypatch.setattr(lora, "_kind_problem", lambda *_: None)
    monkeypatch.setattr(lora, "unused_modules", lambda *_: [])


def janus_with(folder: Path, dtype: torch.dtype = torch.float32, merge: bool | None = None) -> JanusPolicy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return JanusPolicy(tiny_janus(dtype=dtype), templated_tokenizer(), adapter=folder, merge_rollout=merge)


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", WRONG)
def test_an_adapter_that_is_ignored_in_part_is_seen(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """Independently of what its files say; in bf16 PEFT's variants are refused when a decoder is made."""
    policy = janus_with(write_adapter(tmp_path, REFUSED[kind][0]), dtype)
    with pytest.raises(ValueError, match=f"x: {WRONG[kind]} does not match|LoRA variant"):
        check_agreement(policy, "x")


@pytest.mark.usefixtures("unguarded")
def test_dropout_that_is_active_in_training_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "_drop_dropout", lambda *_: None)
    policy = janus_with(write_adapter(tmp_path, HONOURED["dropout"]))
    check_agreement(policy, "x")
    policy.train()
    with pytest.raises(Disagreement):
        check_agreement(policy, "x")


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{"r": 4}, None], ids=["lora", "full"])
def test_what_is_sound_passes(settings: Any, dtype: torch.dtype, merge: bool) -> None:
    policy = tiny_policy(lora=settings, dtype=dtype, merge_rollout=merge)
    check_agreement(policy, "at the start")
    if dtype == torch.float32:
        train_a_little(policy, lr=0.01)
        check_agreement(policy, "trained")
        policy.refresh_reference()
        train_a_little(policy, lr=0.01)
        check_agreement(policy, "with a reference that moved")


def test_a_copy_in_bfloat16_passes() -> None:
    policy = tiny_policy(lora=None)
    policy.decode_in(torch.bfloat16)
    check_agreement(policy, "x", lambda: torch.autocast("cpu", torch.bfloat16))


def test_the_modules_are_asked_as_the_oracle_of_the_tests_asks_them() -> None:
    policy = tiny_policy()
    for level in (PLAN, IMAGE):
        context, ids = fixed_tokens(policy.janus, level)
        with torch.no_grad():
            found = module_logps(policy.janus, level, context, ids)
        assert torch.equal(found, level_logps(policy.janus, level, context, ids))


@pytest.mark.parametrize("path", ["training", "the rollout", "the reference"])
def test_each_path_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that leaves the adapter out, a reference that has it, a training pass with a scaled head."""
    policy = tiny_policy()
    keeper: Any = policy._keeper
    if path == "training":
        forward = policy._train_level

        def scaled(name: str, level: Any) -> Any:
            output = forward(name, level)
            return type(output)(output.features * 1.01, output.head)

        monkeypatch.setattr(policy, "_train_level", scaled)
    elif path == "the rollout":
        monkeypatch.setattr(policy, "decoder", lambda: keeper._made(policy.janus, policy.engine, "merged", False))
    else:
        made = keeper._made
        monkeypatch.setattr(
            keeper, "_made", lambda janus, engine, form, adapter, lent=False: made(janus, engine, form, True, lent)
        )
    with pytest.raises(Disagreement, match=rf"^run=x: {path} does not match .* off by [\d.e+-]+ nats"):
        check_agreement(policy, "run=x")


def test_a_decoder_and_a_merged_model_are_held_to_their_modules() -> None:
    policy = tiny_policy()
    beside = fixed_logps(policy.janus)
    check_decoder(policy.decoder(), policy.janus, "x")
    with policy.reference() as decoder, pytest.raises(Disagreement, match=r"^x: the rollout"):
        check_decoder(decoder, policy.janus, "x")
    with pytest.raises(Disagreement, match=r"^x: the merged model"):
        check_merged(beside, tiny_janus(), "x")
    check_merged(beside, policy.adapter.merge_and_unload(), "x")


@pytest.mark.parametrize(
    "part", ["language_model.norm.weight", "mlp.up_proj.weight", "generation_head.proj_out.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_with_nan_is_named(part: str, value: float) -> None:
    janus = tiny_janus()
    name = next(name for name, _ in janus.named_parameters() if name.endswith(part))
    with torch.no_grad():
        janus.get_parameter(name).view(-1)[0] = value
    policy = JanusPolicy(janus, templated_tokenizer(), lora=LoraConfig(r=2))
    with pytest.raises(Disagreement, match=r"log-probs of the \w+ level are NaN or infinite; at fault: ") as caught:
        check_agreement(policy, "x")
    assert part in str(caught.value).replace("base_layer.", "")


def test_it_takes_a_second_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes of 10 tokens a row and level, beside the decoding: small in any size, and no cache is kept."""
    policy = load_janus(EMBEDDED, lora={})
    draw_adapter(policy, 0.05)
    tokens: list[int] = []
    policy.janus.model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: tokens.append(output.last_hidden_state.shape[:2].numel()), with_kwargs=True
    )
    started = time.thread_time()
    check_agreement(policy, "x")
    assert time.thread_time() - started < 1.0
    # A level: two rows for the policy, two for the reference, of 7 and 10 tokens; both as one for training.
    assert sorted(tokens) == sorted(2 * [7, 10, 7, 10, 20])
    assert policy._keeper.memory.bytes == 0


def test_random_numbers_are_left_alone() -> None:
    policy = tiny_policy()
    state = torch.get_rng_state()
    check_agreement(policy, "x")
    assert torch.equal(torch.get_rng_state(), state)


def test_another_policy_is_left_to_its_own_tests() -> None:
    from src.policies.loaded import check_loaded

    check_loaded(nn.Linear(1, 1), {})


def test_the_default_models_of_a_run_pass() -> None:
    for words in ((), ("model.lora=null",), ("model.merge_rollout=false",), ("model.dtype=bfloat16",)):
        policy: Any = build.build_policy(default_config(*words))
        check_agreement(policy, "x")


def test_a_checkpoint_of_the_released_layout_passes(tmp_path: Path) -> None:
    check_agreement(load_janus(save_tiny_checkpoint(tmp_path), lora={}), "x")
