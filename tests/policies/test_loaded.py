"""Every command checks what it loaded, refuses adapters by name, and says whose reference it is."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.cli import command as cli
from src.cli.compose import compose
from src.evaluate import command as evaluate
from src.export.command import COMMAND as EXPORT
from src.generate import command as generate
from src.policies import agreement
from src.policies.agreement import Disagreement
from src.policies.loaded import reference_note
from src.runs.sound_files import checksum_path
from src.trained import choose_model, load_policy
from tests.policies.adapters import HONOURED, REFUSED, write_adapter
from tests.tiny_run import default_config, full_run, lora_run
from tests.training.runs import (
    checkpoint_weights,
    metrics_rows,
    overrides,
    run_process,
    summary,
    train,
    write_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "plain", HONOURED["plain"])


def main(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    return module.main()


def commands(out: Path) -> dict[str, Callable[[pytest.MonkeyPatch], int]]:
    """Every command that loads what was trained, as a process would run it; each writes to `out`."""
    run, full = lora_run().path, full_run().path
    one = ("n=1", "rewards=shapes", f"out={out}")
    return {
        "generate": lambda m: main(generate, m, "prompts=two green squares", f"run={run}", f"out={out}", "n=1"),
        "generate, full": lambda m: main(generate, m, "prompts=two green squares", f"run={full}", f"out={out}", "n=1"),
        "evaluate": lambda m: main(evaluate, m, f"run={run}", "max_prompts=1", *one),
        "evaluate, full": lambda m: main(evaluate, m, f"run={full}", "max_prompts=1", *one),
        "export": lambda m: cli.run(EXPORT, [f"run={run}", f"out={out}", "merge=true"]),
    }


@pytest.mark.parametrize("name", ["generate", "generate, full", "evaluate", "evaluate, full", "export"])
def test_a_command_stops_where_paths_differ(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differ(*_: Any) -> None:
        raise Disagreement("the paths differ")

    command = commands(tmp_path / "out")[name]
    monkeypatch.setattr(agreement, "_hold", differ)
    assert command(monkeypatch) == 2
    assert "error: the paths differ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_loads_as_generate_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does the painting of benchmarks: both call `load_policy`."""
    from src.config.errors import UserError

    def differ(*_: Any) -> None:
        raise Disagreement("the paths differ")

    chosen = choose_model(compose([f"run={lora_run().path}"], "demo"))
    monkeypatch.setattr(agreement, "_hold", differ)
    with pytest.raises(UserError, match="the paths differ"):
        load_policy(chosen)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("lora", ["default", "null"])
def test_training_stops_where_paths_differ(
    lora: str,
    resumed: bool,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is sampled, with a checkpoint's weights in place."""
    settings = {} if lora == "default" else {"model__lora": lora}
    if resumed:
        assert train(world, tmp_path / "run", trainer__max_steps=2, **settings) == 0
        trained = checkpoint_weights(tmp_path / "run")
    seen: list[dict[str, torch.Tensor]] = []

    def differ(policy: Any, *_: Any) -> None:
        seen.append({f"policy.{n}": p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad})
        raise Disagreement("the paths differ")

    monkeypatch.setattr(agreement, "check_agreement", differ)
    more = {"resume": "auto", "trainer__max_steps": 4} if resumed else {}
    assert train(world, tmp_path / "run", **settings, **more) == 2
    assert "error: the paths differ" in capsys.readouterr().err
    if resumed:
        assert seen[0].keys() == trained.keys()
        assert all(torch.equal(seen[0][name], trained[name]) for name in trained)
    else:
        assert not (tmp_path / "run" / "before.json").exists()
        assert not metrics_rows(tmp_path / "run")


@pytest.mark.parametrize("kind", ["all-linear", "dora", "no effect"])
def test_an_adapter_is_refused_before_a_folder_is_made(
    kind: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "adapter", REFUSED[kind][0])
    assert train(world, tmp_path / "run", model__adapter=folder) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: model: ")
    assert REFUSED[kind][1] in message
    assert not (tmp_path / "run").exists()


def spoilt(tensors: dict[str, torch.Tensor]) -> str:
    """NaN into the last of the tensors; returns its name."""
    name = list(tensors)[-1]
    tensors[name].view(-1)[0] = float("nan")
    return name


def test_an_adapter_with_nan_is_refused_by_every_command(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(lora_run().adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = spoilt(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    out = f"out={tmp_path / 'out'}"
    codes = [
        main(generate, monkeypatch, "prompts=two green squares", f"adapter={folder}", out),
        main(evaluate, monkeypatch, f"adapter={folder}", "data=shapes", "rewards=shapes", out),
        cli.run(EXPORT, [f"adapter={folder}", out]),
        cli.run(EXPORT, [f"adapter={folder}", out, "merge=true"]),
        train(world, tmp_path / "run", model__adapter=folder, model__path=Path("src/shapes/checkpoint").resolve()),
    ]
    assert codes == [2] * 5
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(messages) == 5
    assert all(f"{name} contains NaN or infinity" in message for message in messages)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


def test_trained_weights_with_nan_are_refused_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(full_run().path, run)
    weights = next((run / "checkpoints").glob("*.safetensors"))
    tensors = load_file(weights)
    name = spoilt(tensors)
    save_file(tensors, weights)
    checksum_path(weights).unlink(missing_ok=True)
    out = f"out={tmp_path / 'out'}"
    codes = [
        main(generate, monkeypatch, "prompts=two green squares", f"run={run}", out),
        main(evaluate, monkeypatch, f"run={run}", out),
        cli.run(EXPORT, [f"run={run}", out]),
    ]
    assert codes == [2] * 3
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert all(f"{name} contains NaN or infinity" in message for message in messages)


def test_a_checkpoint_with_nan_is_not_resumed(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(world, tmp_path / "run", trainer__max_steps=2) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    name = spoilt(state["state_dict"])
    torch.save(state, checkpoint)
    checksum_path(checkpoint).unlink(missing_ok=True)
    capsys.readouterr()
    assert train(world, tmp_path / "run", trainer__max_steps=4, resume="auto") == 2
    assert f"{name} contains NaN or infinity" in capsys.readouterr().err


def first_kl(run: Path) -> tuple[float, float]:
    row = next(row for row in metrics_rows(run) if row["step"] == "1")
    return float(row["plan/kl"]), float(row["image/kl"])


def test_a_run_from_an_adapter_says_that_the_reference_is_the_base_and_how_to_change_that(
    world: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that it names are run as they stand."""
    ours = tmp_path / "an adapter"
    shutil.copytree(adapter, ours)
    assert train(world, tmp_path / "run", trainer__max_steps=1, model__adapter=ours) == 0
    said = capsys.readouterr().out
    assert "the reference is the base without it" in said
    assert max(first_kl(tmp_path / "run")) > 1.0
    command = re.search(r"python -m src\.export (.*)", said)
    again = re.search(r"this command again with (.*)", said)
    assert command is not None
    assert again is not None
    assert cli.run(EXPORT, shlex.split(command[1])) == 0
    settings = dict(word.split("=", 1) for word in shlex.split(again[1]))
    settings = {name.replace(".", "__"): value for name, value in settings.items()}
    capsys.readouterr()
    assert train(world, tmp_path / "again", trainer__max_steps=1, **settings) == 0
    assert "the reference is the base" not in capsys.readouterr().out
    assert first_kl(tmp_path / "again") == pytest.approx((0.0, 0.0), abs=1e-6)


def test_the_note_is_left_out_where_it_says_nothing() -> None:
    assert reference_note(default_config(), needs_reference=True) is None
    assert reference_note(default_config("model.adapter=runs/x/adapter"), needs_reference=False) is None
    note = reference_note(default_config("model.adapter=runs/x/adapter/"), needs_reference=True)
    assert note is not None
    assert "out=runs/x/adapter-merged merge=true" in note


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["vision tower too", "dropout"])
def test_two_ranks_train_such_adapters(kind: str, strategy: str, world: Path, tmp_path: Path) -> None:
    """Targets that match the vision tower, too, died in DDP's error about unused parameters."""
    folder = write_adapter(tmp_path / "adapter", HONOURED[kind])
    words = overrides(
        world, tmp_path / "run", model__adapter=folder, trainer__devices=2, trainer__max_steps=2, trainer=strategy
    )
    done = run_process([sys.executable, "-m", "src.train", *words], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert summary(tmp_path / "run")["finished"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors").keys()
            == load_file(folder / "adapter_model.safetensors").keys()
        )
