"""``python -m src.benchmark_images``: the layout on disk, the same pictures again, wrong input in one message."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from src.benchmark_images import command as benchmark_images
from src.benchmark_images import writer
from src.cli import command as cli
from tests.benchmark_images.prompts import COPIES
from tests.tiny_run import lora_run


def run(*arguments: str) -> int:
    return cli.run(benchmark_images.COMMAND, list(arguments))


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_geneval_from_a_model_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the batch, the same pictures; a second call paints nothing; a gap is filled with the same picture."""
    asked = ("name=geneval", f"prompts={COPIES['geneval'](tmp_path / 'copy')}", "n=2", "seed=3")
    assert run(*asked, f"out={tmp_path / 'a'}", "batch_size=1") == 0
    assert run(*asked, f"out={tmp_path / 'b'}", "batch_size=8") == 0
    before = tree(tmp_path / "a")
    assert set(before) == {
        "benchmark.json",
        *(f"0000{i}/metadata.jsonl" for i in (0, 1)),
        *(f"0000{i}/samples/0000{j}.png" for i in (0, 1) for j in (0, 1)),
    }
    assert before == tree(tmp_path / "b")
    assert len({before[name] for name in before if name.endswith(".png")}) == 4
    with Image.open(tmp_path / "a/00000/samples/00000.png") as image:
        assert (image.size, image.mode) == ((24, 24), "RGB")
    manifest = json.loads(before["benchmark.json"])
    assert manifest["sampling"]["guidance_scale"] == 1.5, "the model's own sampling"
    (tmp_path / "a/00001/samples/00000.png").unlink()
    capsys.readouterr()
    assert run(*asked, f"out={tmp_path / 'a'}", "batch_size=8") == 0
    assert "1 images painted, 3 already there" in capsys.readouterr().out
    assert tree(tmp_path / "a") == before


def test_a_run_paints_with_what_it_learned(tmp_path: Path) -> None:
    copy = COPIES["wise"](tmp_path / "copy")
    asked = ("name=wise", f"prompts={copy}", "temperature=1.5")
    assert run(*asked, f"run={lora_run().path}", f"out={tmp_path / 'run'}") == 0
    assert run(*asked, f"adapter={lora_run().adapter}", f"out={tmp_path / 'adapter'}") == 0
    assert run(*asked, f"out={tmp_path / 'base'}") == 0
    pictures = {
        kind: {name: value for name, value in tree(tmp_path / kind).items() if name.endswith(".png")}
        for kind in ("run", "adapter", "base")
    }
    assert set(pictures["run"]) == {"1.png", "401.png", "402.png", "641.png"}
    assert pictures["run"] == pictures["adapter"] != pictures["base"]
    assert json.loads((tmp_path / "run/benchmark.json").read_text())["run"] == str(lora_run().path.resolve())
    # Another model's pictures do not join.
    assert run(*asked, f"out={tmp_path / 'run'}") == cli.EXIT_WRONG_INPUT


def test_a_run_by_name_is_kept_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(lora_run().path)
    copy = COPIES["wise"](tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert run("name=wise", f"prompts={copy}", "run=mine", "out=out") == 0
    assert json.loads((tmp_path / "out/benchmark.json").read_text())["run"] == str(lora_run().path.resolve())
    assert run("name=wise", f"prompts={copy}", "run=runs/mine", "out=out") == 0, "the same run, written otherwise"


def test_interrupted_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("name=dpg", f"prompts={COPIES['dpg'](tmp_path / 'copy')}", f"out={tmp_path / 'out'}", "batch_size=4")
    real, calls = writer.grid, []

    def grid(images):  # type: ignore[no-untyped-def]
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(images)

    monkeypatch.setattr(writer, "grid", grid)
    assert run(*asked) == cli.EXIT_INTERRUPTED
    assert "interrupted with 1 of 2 images; the same command continues" in capsys.readouterr().err
    assert set(tree(tmp_path / "out")) == {"benchmark.json", "images/0.png"}
    assert run(*asked) == 0
    with Image.open(tmp_path / "out/images/COCOval2014000000010363.png") as image:
        assert image.size == (48, 48)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompts=copy", "out=out"], "name: missing; expected one of geneval, t2i_compbench, wise, dpg, tiif"),
        (["name=genevall", "prompts=copy", "out=out"], "name: 'genevall'"),
        (["name=geneval", "out=out"], "prompts: missing"),
        (["name=geneval", "prompts=copy"], "out: missing"),
        (["name=geneval", "prompts=nowhere", "out=out"], "no such file or folder"),
        (["name=wise", "prompts=copy", "out=out"], "not a folder of WISE"),
        (["name=geneval", "prompts=copy", "out=out", "n=0"], "n=0: expected an integer >= 1"),
        (["name=geneval", "prompts=copy", "out=out", "run=nowhere"], "nowhere"),
        (["name=geneval", "prompts=copy", "out=out", "seed=-1"], "seed=-1"),
        (["name=geneval", "prompts=copy", "out=out", "sed=1"], "Did you mean seed?"),
        (["name=geneval", "prompts=copy", "out=taken"], "not empty"),
        (["name=geneval", "prompts=empty.jsonl", "out=out"], "contains no prompts"),
    ],
)
def test_wrong_input_is_one_message_before_any_weight_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("src.trained.load_policy", lambda chosen: pytest.fail("weights were read"))
    COPIES["geneval"](tmp_path / "copy")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").touch()
    (tmp_path / "empty.jsonl").touch()
    assert run(*arguments) == cli.EXIT_WRONG_INPUT
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_the_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_images", "--help"])
    assert benchmark_images.main() == 0
    assert "name=geneval | t2i_compbench | wise | dpg | tiif" in capsys.readouterr().out
