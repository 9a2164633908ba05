"""Checkpoints that were damaged, and disks that were full: seen before anything is loaded, with a way on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from src.runs.resume import checkpoint_state
from src.runs.sound_files import damage
from tests.training.forked import forked
from tests.training.runs import overrides, train, write_world
from tests.training.test_kills import SETTINGS, assert_nothing_half_written
from tests.training.test_resume import assert_same_end, assert_same_state


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    run = world / "finished"
    assert train(world, run, **SETTINGS) == 0
    return run


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    """A run of two steps that is to go on to four; its last two checkpoints are those of steps 1 and 2."""
    path = tmp_path / "run"
    assert train(world, path, **SETTINGS | {"trainer__max_steps": 2}) == 0
    (path / "summary.json").unlink()
    return path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [cut, flip, lose])
def test_the_newest_sound_checkpoint_is_offered_and_goes_on(
    harm: Any, run: Path, world: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    harm(last)
    assert train(world, run, resume="auto", **SETTINGS) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {last}: damaged: ")
    found = re.search(r"the newest valid one is that of step 1: the same command with resume=(\S+)", told)
    assert found, told
    assert train(world, run, resume=found[1], **SETTINGS) == 0
    assert_same_end(run, finished)
    assert_nothing_half_written(run)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_sound_one(run: Path, world: Path) -> None:
    flip(run / "checkpoints" / "last.ckpt")
    previous = run / "checkpoints" / "previous.ckpt"
    log = run.parent / "log"

    def kill_after_one_more() -> None:
        from src.runs.checkpoint_io import SoundCheckpointIO

        original = SoundCheckpointIO.save_checkpoint

        def save(self: Any, *arguments: Any, **options: Any) -> None:
            original(self, *arguments, **options)
            os._exit(9)

        SoundCheckpointIO.save_checkpoint = save  # type: ignore[method-assign]

    ended = forked([*overrides(world, run, **SETTINGS), f"resume={previous}"], log, kill_after_one_more)
    assert ended.code == 9
    assert damage(run / "checkpoints" / "last.ckpt") is None
    assert checkpoint_state(previous)["global_step"] == 1, "still the one the run was resumed from"
    assert damage(previous) is None


def test_two_damaged_checkpoints_leave_nothing_to_offer(
    run: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        flip(run / "checkpoints" / name)
    assert train(world, run, resume=run, **SETTINGS) == 2
    assert "there is no other valid one; begin again in another folder" in capsys.readouterr().err


def test_damaged_best_weights_can_be_given_up(
    run: Path, world: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = run / "checkpoints" / "best.safetensors"
    cut(best)
    assert train(world, run, resume="auto", **SETTINGS) == 2
    assert re.search(rf"{best}: damaged: .*delete that file to go on", capsys.readouterr().err)
    best.unlink()
    assert train(world, run, resume="auto", **SETTINGS) == 0
    assert_same_state(run, finished)
    assert_nothing_half_written(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of its own with room for 700 KB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.faults
def test_a_disk_that_fills_up(small_disk: Path, world: Path, finished: Path, tmp_path: Path) -> None:
    """The run ends with code 1 and says why; with room again it goes on as if nothing had been."""
    run, filler = small_disk / "run", small_disk / "filler"
    command = overrides(world, run, **SETTINGS)

    def fill_at_the_second() -> None:
        from src.runs.checkpoint_io import SoundCheckpointIO

        original, saved = SoundCheckpointIO.save_checkpoint, []

        def save(self: Any, *arguments: Any, **options: Any) -> None:
            saved.append(1)
            if len(saved) == 3:
                free = os.statvfs(small_disk)
                filler.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - 100_000))
            original(self, *arguments, **options)

        SoundCheckpointIO.save_checkpoint = save  # type: ignore[method-assign]

    ended = forked(command, tmp_path / "log", fill_at_the_second)
    assert ended.code == 1, ended.output
    last = run / "checkpoints" / "last.ckpt"
    assert f"error: {last}: cannot be written (No space left on device)" in ended.output
    assert f"the last good checkpoint is {last}" in ended.output
    assert "Traceback" not in ended.output
    assert_nothing_half_written(run)
    assert checkpoint_state(last)["global_step"] == 2
    filler.unlink()
    small = subprocess.run(
        ["mount", "-o", "remount,size=8m", str(small_disk)], capture_output=True, text=True, check=False
    )
    assert small.returncode == 0, small.stderr
    ended = forked([*command, "resume=auto"], tmp_path / "log")
    assert ended.code == 0, ended.output
    assert_same_end(run, finished)
