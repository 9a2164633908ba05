"""Export: what is written loads with plain transformers and peft, and says what the trained policy says."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src import build
from src.cli import command as cli
from src.config.errors import UserError
from src.config.schema import LoraConfig
from src.export.command import COMMAND
from src.policies.export import load_base, merge_layers
from src.policies.lora import attach_lora
from src.rollout.levels import RolloutSettings, roll_out
from src.rollout.noise import RolloutKey
from src.runs.folder import RunFolder, write_text
from src.runs.sound_files import write_whole
from src.values import LEVELS
from tests.tiny_run import default_config, full_run, lora_run, run_config, trained_policy

PROMPTS = ("a red circle left of a blue square", "two green triangles")

# Runs where nothing of this project can be imported; torchvision may be one that cannot be imported either.
PLAIN = """
import sys, torch
try:
    import torchvision
except (ImportError, RuntimeError):
    sys.modules["torchvision"] = None
for name in ("src", "kernels"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported: {sys.modules[name].__file__}")
from transformers import AutoProcessor, AutoTokenizer, JanusForConditionalGeneration

def logits(model, inputs):
    model = model.double()  # so that what is compared are the weights, not the rounding of sums
    janus = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = {}
    for level, given in inputs.items():
        embed = janus.get_input_embeddings()
        tokens = given["ids"][:, :-1]
        tail = embed(tokens) if level == "plan" else janus.prepare_embeddings_for_image_generation(tokens)
        mask = torch.cat([given["context_mask"], torch.ones_like(tokens, dtype=torch.bool)], 1)
        hidden = janus.model.language_model(
            inputs_embeds=torch.cat([embed(given["context"]), tail], 1), attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False,
        ).last_hidden_state[:, given["context"].shape[1] - 1:]
        found[level] = janus.lm_head(hidden) if level == "plan" else janus.model.generation_head(hidden)
    return found

base_path, adapter, merged, inputs, out = sys.argv[1:]
inputs = torch.load(inputs)
found = {}
with torch.no_grad():
    if adapter != "-":
        import json
        from peft import PeftModel
        named = json.load(open(adapter + "/adapter_config.json"))["base_model_name_or_path"]
        base = JanusForConditionalGeneration.from_pretrained(named, tie_word_embeddings=False).eval()
        found["adapter"] = logits(PeftModel.from_pretrained(base, adapter).eval(), inputs)
    whole = JanusForConditionalGeneration.from_pretrained(merged, dtype="auto").eval()
    found["merged"] = logits(whole, inputs)
    found["base"] = logits(JanusForConditionalGeneration.from_pretrained(base_path).eval(), inputs)
tokenizer, processor = AutoTokenizer.from_pretrained(merged), AutoProcessor.from_pretrained(merged)
found["templates"] = tokenizer.chat_template
found["text"] = processor.tokenizer("a red circle")["input_ids"]
found["generation"] = whole.generation_config.to_dict()
torch.save(found, out)
"""


def levels_of(policy: Any, run: RunFolder) -> dict[str, Any]:
    """One rollout a prompt under the trained policy."""
    keys = [RolloutKey(3, "export test", 0, place, 0) for place in range(len(PROMPTS))]
    return roll_out(policy, policy.decoder(), PROMPTS, keys, RolloutSettings.of(run_config(run).rollout)).levels


def plain_logits(tmp_path: Path, levels: dict[str, Any], base: str, adapter: Path | None, merged: Path) -> Any:
    """What plain transformers and peft say in a process that cannot import this project."""
    inputs = {n: {"context": v.context.ids, "context_mask": v.context.mask, "ids": v.ids} for n, v in levels.items()}
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "plain.py").write_text(PLAIN, encoding="utf-8")
    arguments = [base, str(adapter or "-"), str(merged), str(tmp_path / "inputs.pt"), str(tmp_path / "found.pt")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # -S -P leave the checkout out even where it is installed editable; the packages are added by hand.
    packages = [path for path in sys.path if path.endswith("-packages")]
    program = f"import sys; sys.path += {packages!r}; sys.argv = sys.argv[1:]; exec(open('plain.py').read())"
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program, "plain.py", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "found.pt", weights_only=False)


def trained_logits(policy: Any, levels: dict[str, Any]) -> dict[str, Tensor]:
    """The policy's own forward pass, in float64 as the plain models' (the weights stay what they are)."""
    exact = copy.deepcopy(policy).double()
    with torch.no_grad():
        return {name: output.logits() for name, output in exact(levels).items()}


def differences(found: dict[str, Tensor], wanted: dict[str, Tensor], levels: dict[str, Any]) -> dict[str, float]:
    """Largest difference by level, over the tokens that count."""
    return {name: float((found[name] - wanted[name]).abs()[levels[name].mask].max()) for name in LEVELS}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], levels: dict[str, Any]) -> None:
    """Equal but for merging, which rounds each weight once, to float32: by 6e-8 of itself, on every way to a logit.

    What the adapters do to the logits is at least ten times the bound (see the callers).
    """
    for name in LEVELS:
        counts = levels[name].mask
        torch.testing.assert_close(found[name][counts], wanted[name][counts], atol=1e-4, rtol=0)


def test_adapter_and_merged_checkpoint_load_without_this_project(tmp_path: Path) -> None:
    run = lora_run()
    policy = trained_policy(run)
    levels = levels_of(policy, run)
    assert cli.run(COMMAND, [f"run={run.path}", f"out={tmp_path / 'adapter'}"]) == 0
    assert cli.run(COMMAND, [f"run={run.path}", f"out={tmp_path / 'merged'}", "merge=true"]) == 0

    base = run_config(run).model.path
    found = plain_logits(tmp_path, levels, base, tmp_path / "adapter", tmp_path / "merged")
    wanted = trained_logits(policy, levels)
    for kind in ("adapter", "merged"):
        same(found[kind], wanted, levels)
        moved = differences(found[kind], found["base"], levels)
        assert min(moved.values()) > 1e-3, (kind, moved)
    # The embedded checkpoint's own templates travel along.
    assert {"plan", "image"} <= set(found["templates"])
    assert found["text"] == policy.tokenizer("a red circle")["input_ids"]
    assert found["generation"]["generation_kwargs"] == policy.janus.generation_config.generation_kwargs
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == base


@pytest.mark.slow
def test_full_fine_tuning_exports_a_whole_checkpoint(tmp_path: Path) -> None:
    run = full_run()
    policy = trained_policy(run)
    levels = levels_of(policy, run)
    assert cli.run(COMMAND, [f"run={run.path}", f"out={tmp_path / 'whole'}"]) == 0
    found = plain_logits(tmp_path, levels, run_config(run).model.path, None, tmp_path / "whole")
    same(found["merged"], trained_logits(policy, levels), levels)
    assert min(differences(found["merged"], found["base"], levels).values()) > 1e-3


def test_damaged_weights_are_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    write_whole(best, lambda file: file.write(b"weights"))
    write_text(tmp_path / "run" / "config.yaml", f"model: {{path: {tmp_path}, lora: null}}\n")
    best.write_bytes(b"weighty")
    assert cli.run(COMMAND, [f"run={tmp_path / 'run'}", f"out={tmp_path / 'whole'}"]) == 2
    assert f"{best} is damaged: its 7 bytes have the SHA-256" in capsys.readouterr().err


def test_a_bf16_base_is_merged_in_float32_and_cast_once(tmp_path: Path) -> None:
    """Against float64: each weight is the bf16 number nearest to base + update, up to float32 rounding of the sum."""
    run = lora_run()
    base = tmp_path / "bf16"
    shutil.copytree(run_config(run).model.path, base)
    model = load_base(base).to(torch.bfloat16)
    model.save_pretrained(base)
    assert cli.run(COMMAND, [f"adapter={run.adapter}", f"base={base}", f"out={tmp_path / 'm'}", "merge=true"]) == 0

    merged, before = load_file(tmp_path / "m/model.safetensors"), load_file(base / "model.safetensors")
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    settings = json.loads((run.adapter / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    touched = 0
    for name, weight in merged.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        if key not in adapter:
            assert torch.equal(weight, before[name]), name
            continue
        update = scale * adapter[key.replace("lora_A", "lora_B")].double() @ adapter[key].double()
        exact = before[name].double() + update
        # bf16 keeps 8 bits: the nearest number is within 2^-8 of the value. Float32 rounds the sum's parts to 2^-24.
        parts = before[name].double().abs() + scale * (
            adapter[key.replace("lora_A", "lora_B")].double().abs() @ adapter[key].double().abs()
        )
        assert bool(((weight.double() - exact).abs() <= exact.abs() * 2**-8 + parts * 2**-20).all()), name
        touched += not torch.equal(weight, before[name])
    assert touched > 0


def test_merging_adds_scale_times_b_times_a() -> None:
    model = torch.nn.ModuleDict({"language_model": torch.nn.Module()})
    layer = torch.nn.Module()
    layer.mlp = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(3, 2, bias=False)})
    model["language_model"].layers = torch.nn.ModuleList([layer])
    tuned: Any = attach_lora(model, LoraConfig(r=1, alpha=4.0, targets=("up_proj",)))
    lora = tuned.base_model.model["language_model"].layers[0].mlp["up_proj"]
    with torch.no_grad():
        lora.base_layer.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        lora.lora_A["default"].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        lora.lora_B["default"].weight.copy_(torch.tensor([[0.5], [-1.0]]))
    merge_layers(tuned)
    # 4 / 1 * [0.5, -1]^T [1, 2, 3] added to the base.
    assert lora.base_layer.weight.tolist() == [[3.0, 4.0, 6.0], [-4.0, -7.0, -12.0]]


def test_training_goes_on_from_an_adapter() -> None:
    """`model.adapter`: the first log-probs are the adapter's, its weights are trained, the reference is the base."""
    run = lora_run()
    wanted = trained_policy(run)
    policy: Any = build.build_policy(default_config(f"model.adapter={run.adapter}"))
    levels = levels_of(wanted, run)
    assert max(differences(trained_logits(policy, levels), trained_logits(wanted, levels), levels).values()) < 1e-6
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    base = build.build_policy(default_config())
    with policy.reference() as reference, base.reference() as untouched:
        for name in LEVELS:
            given = (name, levels[name].context, levels[name].ids)
            torch.testing.assert_close(reference.evaluate(*given), untouched.evaluate(*given), atol=1e-6, rtol=0)


def broken_adapter(folder: Path, change: Any) -> Path:
    """The run's adapter with its weights changed by `change`."""
    shutil.copytree(lora_run().adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def key_of(weights: dict[str, Tensor]) -> str:
    return sorted(weights)[0]


LAYER_99 = "base_model.model.model.language_model.layers.99.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda w: w.update({LAYER_99: torch.ones(1)}), "layers.99", id="a layer the base lacks"),
        pytest.param(lambda w: w.pop(key_of(w)), "layers.0", id="a layer the adapter lacks"),
        pytest.param(lambda w: w.update({key_of(w): torch.ones(16, 7)}), "made for a width of", id="another width"),
    ],
)
def test_an_adapter_of_another_base_is_named(tmp_path: Path, change: Any, named: str) -> None:
    folder = broken_adapter(tmp_path / "other", change)
    with pytest.raises(UserError) as caught:
        build.build_policy(default_config(f"model.adapter={folder}"))
    assert str(folder) in str(caught.value)
    assert "model.adapter" in str(caught.value)
    assert named in str(caught.value)
    assert cli.run(COMMAND, [f"adapter={folder}", f"out={tmp_path / 'out'}", "merge=true"]) == 2
    assert not list(tmp_path.glob("out*")), "nothing half-written"


def damaged(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"no weights")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, ["out={tmp}/out"], "give one of the two"),
        (None, ["run=a", "adapter=b", "out={tmp}/out"], "give one of the two"),
        (None, ["run={run}"], "out: missing"),
        (None, ["run={tmp}/none", "out={tmp}/out"], "run={tmp}/none: no config.yaml there"),
        (None, ["adapter={tmp}/none", "out={tmp}/out"], "adapter={tmp}/none: no such folder"),
        (None, ["adapter={run}", "out={tmp}/out"], "no adapter_config.json there"),
        (None, ["run={run}", "out={tmp}/out", "base={tmp}/none"], "give base=PATH"),
        (None, ["run={run}", "out={tmp}/out", "dtype=float16"], "dtype=float16: expected one of"),
        (None, ["run={run}", "out={tmp}/out", "dtype=bfloat16"], "add merge=true"),
        (None, ["run={run}", "out={run}"], "is not empty"),
        (damaged, ["adapter={tmp}/adapter", "out={tmp}/out"], "damaged"),
        (None, ["run={run}", "ot={tmp}/out"], "ot: no such key"),
        (None, ["run={tmp}/my_rum", "out={tmp}/out"], "Did you mean {tmp}/my_run?"),
        (None, ["run={run}", "out={tmp}/out", "push_to_hub=true"], "repo: missing"),
        (None, ["run={run}", "out={tmp}/out", "push_to_hub=true", "repo=a/b/c"], "not a repository name"),
        (None, ["run={run}", "out={tmp}/out", "register=true", "registered_name=a/b"], "without slashes"),
        (
            None,
            ["run={run}", "out={tmp}/out", "register=true", "tracking_uri=ftp://x"],
            "tracking_uri=ftp://x: expected",
        ),
    ],
)
def test_wrong_input_gives_one_message_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Any, arguments: list[str], message: str
) -> None:
    places = {"tmp": tmp_path, "run": lora_run().path}
    shutil.copytree(lora_run().adapter, tmp_path / "adapter")
    (tmp_path / "my_run").mkdir()
    shutil.copyfile(lora_run().config, tmp_path / "my_run" / "config.yaml")
    if prepare is not None:
        prepare(tmp_path / "adapter")
    capsys.readouterr()
    assert cli.run(COMMAND, [argument.format(**places) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message.format(**places) in lines[0]
    assert not list(tmp_path.glob("out*"))


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    assert cli.run(COMMAND, [f"run={lora_run().path}", f"out={out}", "overwrite=true"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "samples_after.png",
        "samples_before.png",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
