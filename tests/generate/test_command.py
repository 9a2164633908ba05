"""Generation: prompts survive the command line, the same seed gives the same bytes, wrong input one message."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from src.cli.prompt_source import PromptSource, read_prompts, take_out
from src.generate import command as generate
from src.images import KEYS, read_png
from src.rollout.noise import rollout_key
from src.shapes.judge import judge
from src.values import PromptRecord
from tests.conftest import ROOT
from tests.tiny_run import lora_run, run_config

HARD = "a \"red\" circle, left of: [a blue] {square} (k=v) ${run.name} \\n 'x' ünïcode 圆 круг & *?"
RECORD = {
    "prompt": "two green squares",
    "task_type": "count",
    "scene": {"objects": [{"color": "green", "shape": "square", "number": 2}], "form": "count"},
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """``python -m src.generate`` in this process."""
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    return generate.main()


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_no_prompt_reaches_hydra(prompts: list[str]) -> None:
    """Whatever stands behind ``prompts=`` comes out as it went in, and the rest in its order."""
    arguments = ["n=2", *(f"prompts={prompt}" for prompt in prompts), "prompts_file=a,b=c.txt", "--cfg", "job"]
    source, others = take_out(arguments)
    assert source == PromptSource(tuple(prompts), ("a,b=c.txt",))
    assert others == ["n=2", "--cfg", "job"]


def test_hard_prompts_give_pictures_plans_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, f"prompts={HARD}", "prompt=两个绿色的圆", "n=3", f"out={out}", "batch_size=4") == 0
    entries = lines(out)
    assert [(entry["prompt"], entry["rollout"]) for entry in entries] == [
        (prompt, rollout) for prompt in (HARD, "两个绿色的圆") for rollout in range(3)
    ]
    for entry in entries:
        with Image.open(out / entry["file"]) as image:
            assert (image.size, image.mode) == ((24, 24), "RGB")
        assert entry["scores"] == {}, "nothing is known of these prompts, so no expert applies"
        assert "reward" not in entry
        assert entry["plan_ended"] in (True, False)
        assert entry["adapter"] is None
        # The model's own sampling, from configs/sampling.
        assert entry["sampling"]["guidance_scale"] == 1.5
    assert len({(out / entry["file"]).read_bytes() for entry in entries}) > 1
    with Image.open(out / "grid.png") as grid:
        assert min(grid.size) > 200
    assert len(list((out / "images").iterdir())) == 6


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("prompts=a red circle left of a blue square", "n=3")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert run(monkeypatch, *asked, f"seed={seed}", f"out={tmp_path / name}") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a").keys() == files(tmp_path / "c").keys()
    pictures = [{k: v for k, v in files(tmp_path / name).items() if k.startswith("images")} for name in ("a", "c")]
    assert pictures[0] != pictures[1]


def test_noise_follows_the_prompt_not_its_place() -> None:
    assert rollout_key(1, "a", 0) == rollout_key(1, "a", 0)
    different = {rollout_key(seed, prompt, rollout) for seed in (1, 2) for prompt in "ab" for rollout in (0, 1)}
    assert len(different) == 8


def test_records_bring_scores_and_a_run_its_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out, trained = tmp_path / "p.jsonl", tmp_path / "out", lora_run()
    file.write_text(json.dumps(RECORD) + "\n" + json.dumps({"prompt": "free words"}) + "\n")
    asked = (f"prompts_file={file}", f"run={trained.path}", "n=2", "temperature=0.5", "top_p=0.9")
    assert run(monkeypatch, *asked, f"out={out}") == 0
    entries = lines(out)
    for entry in entries[:2]:
        assert set(entry["scores"]) == {"shapes"}
        # The judge reads the file that was written.
        with Image.open(out / entry["file"]) as image:
            pixels = torch.tensor(list(image.tobytes())).view(24, 24, 3).permute(2, 0, 1)[None] / 255
        record = PromptRecord(RECORD["prompt"], "count", scene=RECORD["scene"])  # type: ignore[arg-type]
        assert entry["details"]["all_correct"] == float(judge(pixels, [record]).all_correct[0])
    for entry in entries[2:]:
        assert entry["scores"] == {}
    rollout = run_config(trained).rollout
    assert entries[0]["sampling"] == {
        "guidance_scale": rollout.guidance_scale,
        "max_plan_tokens": rollout.max_plan_tokens,
        "plan_temperature": 0.5,
        "image_temperature": 0.5,
        "plan_top_k": None,
        "image_top_k": None,
        "plan_top_p": 0.9,
        "image_top_p": 0.9,
    }
    assert entries[0]["adapter"] == str(trained.adapter)


def test_a_picture_is_the_best_of_its_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first candidate is the picture without best-of-N; batches may cut through the candidates."""
    asked = ("prompts=three blue circles", "prompts=two green squares", "n=2", "temperature=1.5")
    assert run(monkeypatch, *asked, f"out={tmp_path / 'one'}") == 0
    assert run(monkeypatch, *asked, f"out={tmp_path / 'three'}", "best_of=3", "batch_size=4") == 0
    assert run(monkeypatch, *asked, f"out={tmp_path / 'five'}", "best_of=5", "best_of_by=shapes") == 0
    ones, threes, fives = (lines(tmp_path / name) for name in ("one", "three", "five"))
    assert [entry["file"] for entry in threes] == [entry["file"] for entry in ones]
    for one, three, five in zip(ones, threes, fives, strict=True):
        for entry, of, by in ((three, 3, "reward"), (five, 5, "shapes")):
            found = entry["best_of"]["scores"]
            assert (len(found), entry["best_of"]["of"], entry["best_of"]["by"]) == (of, of, by)
            assert entry["reward"] == max(found)
            assert entry["candidate"] == found.index(max(found))
            assert found[0] == one["reward"]
        assert five["best_of"]["scores"][:3] == three["best_of"]["scores"]
        if three["candidate"] == 0:
            with Image.open(tmp_path / "one" / one["file"]) as a, Image.open(tmp_path / "three" / three["file"]) as b:
                assert a.tobytes() == b.tobytes()
        assert "best_of" not in one
    assert any(entry["candidate"] for entry in fives), "seeds under which something is chosen"


def test_a_png_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads the chunks, in UTF-8, and they are the line of samples.jsonl."""
    out, trained = tmp_path / "out", lora_run()
    assert run(monkeypatch, f"prompts={HARD}", "prompts=two green squares", f"run={trained.path}", f"out={out}") == 0
    for entry in lines(out):
        with Image.open(out / entry["file"]) as image:
            assert image.text["prompt"] == entry["prompt"]
            assert image.text["plan"] == entry["plan"]
            assert image.text["adapter"] == str(trained.adapter)
            assert json.loads(image.text["scores"]) == entry["scores"]
            assert int(image.text["seed"]) == 0
        assert b"tEXt" not in (out / entry["file"]).read_bytes(), "Latin-1"
        assert read_png(out / entry["file"]) == {key: entry[key] for key in KEYS if entry.get(key) is not None}


def test_a_run_goes_by_its_name_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(lora_run().path)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "prompts=two green squares", "run=mine", "n=1", "out=out") == 0
    assert lines(tmp_path / "out")[0]["adapter"] == str(Path("runs/mine/adapter"))


def test_without_scores_there_is_no_best_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "prompts=free words", "best_of=2", f"out={tmp_path / 'out'}") == 2
    assert "nothing to choose by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_adapter_changes_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("prompts=two green squares", "prompts=three blue circles and two more", "n=32", "temperature=1.5")
    assert run(monkeypatch, *asked, f"out={tmp_path / 'base'}") == 0
    assert run(monkeypatch, *asked, f"out={tmp_path / 'tuned'}", f"adapter={lora_run().adapter}") == 0
    assert run(monkeypatch, *asked, f"out={tmp_path / 'run'}", f"run={lora_run().path}") == 0
    pictures = [
        [Image.open(path).tobytes() for path in sorted((tmp_path / kind / "images").iterdir())]
        for kind in ("base", "tuned", "run")
    ]
    assert pictures[0] != pictures[1]
    assert pictures[1] == pictures[2], "a run and its adapter are the same policy"


def test_prompts_from_a_file_and_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa red circle, big\r\n\n  [x]: y=z\u2028w  \n".encode())
    assert [r.prompt for r in read_prompts(PromptSource(files=(str(file),)))] == [
        "a red circle, big",
        "[x]: y=z\u2028w",
    ]
    stdin = io.TextIOWrapper(io.BytesIO("from a pipe, 圆\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    records = read_prompts(PromptSource(texts=("first", "-")))
    assert [record.prompt for record in records] == ["first", "from a pipe, 圆"]


def misfit(folder: Path) -> None:
    """An adapter made for a wider base."""
    shutil.copytree(lora_run().adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in sorted(weights) if "lora_A" in name)
    weights[name] = torch.ones(len(weights[name]), 7)
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prompts: missing"),
        (["prompts="], "prompts: a prompt is empty"),
        (["prompts=  "], "prompts: a prompt is empty"),
        (["prompts=a", "n=0"], "n=0: expected an integer >= 1"),
        (["prompts=a", "best_of=0"], "best_of=0: expected an integer >= 1"),
        (["prompts=a", "best_of=2", "best_of_by=clip"], "best_of_by=clip: no such expert; there are shapes"),
        (["prompts=a", "best_of_by=shapes"], "add best_of=8"),
        (["prompts=a\udc80"], "a prompt is no UTF-8"),
        (["prompts=a", "run={tmp}/my_rum"], "Did you mean {tmp}/my_run?"),
        (["prompts=a", "adapter={tmp}/misfit"], "does not fit the base model"),
        (["prompts=a", "n=two"], "expected an integer"),
        (["prompts=a", "temperature=0"], "temperature=0.0: expected a number >= 0.01"),
        (["prompts=a", "top_k=0"], "top_k=0: expected an integer >= 1"),
        (["prompts=a", "sampling.image_top_p=2"], "sampling.image_top_p=2.0: expected a number >= 1e-06 and <= 1"),
        (["prompts=a", "guidance_scale=0.5"], "guidance_scale=0.5: expected a number >= 1"),
        (["prompts=a", "seed=-1"], "seed=-1: expected"),
        (["prompts=a", "sede=1"], "sede: no such key"),
        (["prompts_file={tmp}/none.txt"], "prompts_file={tmp}/none.txt: no such file"),
        (["prompts_file={tmp}"], "is a folder"),
        (["prompts_file={tmp}/empty.txt"], "contains no prompts"),
        (["prompts_file={tmp}/latin.txt"], "{tmp}/latin.txt:2: byte 0xe9"),
        (["prompts_file={tmp}/bad.jsonl"], "{tmp}/bad.jsonl:2: "),
        (["prompts=a", "run={tmp}/none"], "run={tmp}/none: no config.yaml there"),
        (["prompts=a", "adapter={tmp}/none"], "adapter={tmp}/none: no such folder"),
        (["prompts=a", "run=a", "adapter=b"], "give one of the two"),
        (["prompts=a", "model.path={tmp}/none"], "model.path={tmp}/none: no such directory"),
        (["prompts=a", "out={tmp}/full"], "out={tmp}/full: is not empty"),
    ],
)
def test_wrong_input_gives_one_message_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"a circle\ncaf\xe9\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "my_run").mkdir()
    (tmp_path / "my_run" / "config.yaml").write_text("model: {path: x}")
    misfit(tmp_path / "misfit")
    (tmp_path / "full" / "kept.txt").write_text("kept")
    given_arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if not any(argument.startswith("out=") for argument in given_arguments):
        given_arguments.append(f"out={tmp_path / 'out'}")
    assert run(monkeypatch, *given_arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message.format(tmp=tmp_path) in told[0]
    assert not list(tmp_path.glob("out*"))
    assert (tmp_path / "full" / "kept.txt").read_text() == "kept"


@pytest.mark.slow
def test_the_shell_command(tmp_path: Path) -> None:
    """The real process, prompts through its arguments and its standard input."""
    command = [sys.executable, "-m", "src.generate", f"prompts={HARD}", "prompts=-", "n=1", f"out={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input="второй, промпт\n", text=True, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: ")
    assert done.stderr.count("\n") == 1, "words the model does not know, in one line"
    assert [entry["prompt"] for entry in lines(tmp_path / "out")] == [HARD, "второй, промпт"]
