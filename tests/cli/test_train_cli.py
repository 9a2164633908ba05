"""``python -m src.train`` as a user meets it: exit codes, one message for wrong input, any working directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import overrides, run_process, summary, train, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def refused(world: Path, run: Path, capsys: pytest.CaptureFixture[str], **settings: Any) -> str:
    """The one message of a run that must end with code 2."""
    assert train(world, run, **settings) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err + captured.out
    assert not run.exists(), "nothing may be left behind by a run that never began"
    return captured.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout__group_size": 1}, ["rollout.group_size=1", ">= 2"]),
        ({"algorithm__beta": -1}, ["algorithm.beta=-1", ">= 0"]),
        ({"rollout__guidance_scale": -2}, ["rollout.guidance_scale=-2"]),
        ({"algorithm__name": "nonesuch"}, ["algorithm.name=nonesuch", "grpo"]),
        ({"kernels": "cuda"}, ["kernels=cuda", "torch"]),
        ({"rollout__graph": "true"}, ["rollout.graph=true", "need a GPU", "auto or false"]),
        ({"rewards__combine": "max"}, ["rewards.combine=max", "sum"]),
        ({"rewards__normalise": "each"}, ["rewards.normalise=each", "running"]),
        (
            {"rewards__combine": "product", "rewards__normalise": "group"},
            ["rewards.combine=product", "'red'", "normalise=none"],
        ),
        ({"trainer": "fsdp", "trainer__precision": "bf16-mixed"}, ["trainer.precision=bf16-mixed", "LoRA", "auto"]),
        ({"+rewards__devices__red": "cuda:99"}, ["rewards.devices.red=cuda:99", "offload"]),
        ({"rewards__remote__url": "somewhere"}, ["rewards.remote.url=somewhere", "http://host:port"]),
    ],
)
def test_values_that_cannot_work_give_one_line(
    settings: dict[str, Any], words: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(world, tmp_path / "run", capsys, **settings)
    assert all(word in message for word in words), message
    assert message.count("\n") == 1


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a checkpoint's weights are read."""
    from transformers import JanusForConditionalGeneration

    def loading(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(JanusForConditionalGeneration, "from_pretrained", loading)


@pytest.mark.parametrize("content", ["", "{\n", '{"promt": "a"}\n', '{"prompt": "a"}\n{"prompt": 3}\n', None])
def test_bad_prompts_are_told_before_weights_are_loaded(
    content: str | None,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_weights(monkeypatch)
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    message = refused(world, tmp_path / "run", capsys, data__path=path)
    assert str(path) in message
    if content and "\n" in content:
        assert f"{path}:{2 if '3' in content else 1}" in message


def test_an_expert_that_does_not_exist_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_weights(monkeypatch)
    message = refused(
        world, tmp_path / "run", capsys, **{"+rewards__experts__red___target_": "tests.training.experts.Nobody"}
    )
    assert "rewards.experts.red" in message
    assert "Nobody" in message


def test_a_weight_for_an_unknown_expert_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "blue" in refused(world, tmp_path / "run", capsys, **{"+rewards__weights__blue": 2.0})


@pytest.mark.parametrize("kind", ["missing", "no config", "damaged", "other family"])
def test_a_checkpoint_that_is_none_is_named(
    kind: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model"
    if kind != "missing":
        path.mkdir()
    if kind in ("damaged", "other family"):
        (path / "config.json").write_text("{" if kind == "damaged" else '{"model_type": "gpt2"}')
    message = refused(world, tmp_path / "run", capsys, model__path=path)
    assert str(path) in message


def test_an_adapter_that_is_none_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(world, tmp_path / "run", capsys, model__adapter=tmp_path / "nowhere")
    assert f"model.adapter={tmp_path / 'nowhere'}" in message


def test_a_run_to_resume_that_is_none_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(world, tmp_path / "run", capsys, resume=tmp_path / "nowhere")
    assert f"resume={tmp_path / 'nowhere'}" in message


def test_an_unknown_monitor_is_wrong_input(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(world, tmp_path / "run", evaluation__monitor="nonesuch") == 2
    assert "evaluation.monitor=nonesuch" in capsys.readouterr().err


def test_a_damaged_resume_checkpoint_is_wrong_input(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a checkpoint")
    assert train(world, tmp_path / "run", resume="auto") == 2
    assert str(path) in capsys.readouterr().err


def test_going_on_from_an_adapter(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run starts where the first one's adapter stands; its reference is still the bare model."""
    assert train(world, tmp_path / "first", trainer__max_steps=3, optim__lr=0.05) == 0
    assert train(world, tmp_path / "second", trainer__max_steps=1, model__adapter=tmp_path / "first" / "adapter") == 0
    first, second = summary(tmp_path / "first"), summary(tmp_path / "second")
    assert second["reward_before"] == pytest.approx(first["reward_after"], abs=1e-4)
    capsys.readouterr()


def test_the_last_lines_say_what_improved_and_where_things_are(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(world, run, trainer__max_steps=2) == 0
    out, found = capsys.readouterr().out, summary(run)
    for name in ("reward", "all_correct"):
        assert f"{found[name + '_before']:.3f} -> {found[name + '_after']:.3f}" in out
    for path in ("adapter", "samples_before.png", "samples_after.png", "summary.json"):
        assert str(run / path) in out
    assert "2 steps" in out


@pytest.mark.slow
def test_from_another_directory_as_a_process(world: Path, tmp_path: Path) -> None:
    """Relative run folders are the user's own; the project's files are found wherever one stands."""
    arguments = overrides(world, None, trainer__max_steps=1, run__root="mine")
    done = run_process([sys.executable, "-m", "src.train", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "mine").iterdir()
    assert summary(run)["finished"] is True


@pytest.mark.slow
def test_wrong_input_as_a_process(tmp_path: Path) -> None:
    done = run_process([sys.executable, "-m", "src.train", "experiment=bicot_lora", "rollout.group_size=1"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: rollout.group_size=1")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
