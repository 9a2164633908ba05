"""kill -9 inside each phase of a run, then ``resume=auto``: nothing half-written, and the undisturbed run's end."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from src.runs import phases
from src.runs.sound_files import damage, digests
from tests.training.forked import forked
from tests.training.runs import overrides, write_world
from tests.training.test_resume import assert_same_end

pytestmark = [pytest.mark.slow, pytest.mark.faults]

PHASES = ("rolling out plans", "rolling out images", "scoring", "updating the weights", "writing")
SHARES = (0.15, 0.4, 0.65, 0.9)
SETTINGS: dict[str, Any] = {
    "trainer__max_steps": 4,
    "rollout__group_size": 2,
    "evaluation__every": 2,
    "evaluation__validation_prompts": 1,
    "evaluation__test_prompts": 1,
    "evaluation__picture_prompts": 1,
    "checkpoint__every": 1,
    "model__dtype": "float32",
}


class Calls:
    """Counts the calls of Python functions in each phase of the training steps; at one of them the process dies."""

    def __init__(self, phase: str = "", at: int = 0, counts: Path | None = None) -> None:
        self.phase, self.at, self.counts = phase, at, counts
        self.seen = dict.fromkeys(PHASES, 0)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not phases._entered:
            return
        for phase in PHASES:
            if phase == "writing" or phases._entered[0].startswith("step"):
                if not any(entered.startswith(phase) for entered in phases._entered):
                    continue
                self.seen[phase] += 1
                if phase == self.phase and self.seen[phase] == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        sys.setprofile(self)
        if self.counts is not None:
            counts = self.counts
            from multiprocessing.util import Finalize

            # A fork ends without the interpreter's own exit handlers.
            Finalize(self, lambda: counts.write_text(json.dumps(self.seen)), exitpriority=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> Path:
    """The run nobody killed; ``calls.json`` beside it says how many calls each of its phases made."""
    run = world / "undisturbed"
    counting = Calls(counts=world / "calls.json")
    ended = forked(overrides(world, run, **SETTINGS), world / "log", counting.install)
    assert ended.code == 0, ended.output
    return run


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("phase", PHASES)
def test_killed_inside_a_phase(phase: str, share: float, world: Path, undisturbed: Path, tmp_path: Path) -> None:
    calls = json.loads((world / "calls.json").read_text())[phase]
    assert len({int(share * calls) for share in SHARES}) == len(SHARES), "different places"
    run = tmp_path / "run"
    command = overrides(world, run, **SETTINGS)
    ended = forked(command, tmp_path / "log", Calls(phase, int(share * calls)).install)
    assert ended.code == -signal.SIGKILL, ended.output
    assert_nothing_half_written(run)
    ended = forked([*command, "resume=auto"], tmp_path / "log")
    assert ended.code == 0, ended.output
    assert_same_end(run, undisturbed)


def assert_nothing_half_written(run: Path) -> None:
    """Every file that counts is whole, loads, and has the checksum beside it."""
    files = [path for path in (run / "checkpoints").glob("*") if path.suffix in (".ckpt", ".safetensors")]
    for path in files:
        assert digests(path), path
        assert damage(path) is None, path
        if path.suffix == ".ckpt":
            torch.load(path, map_location="cpu", weights_only=True)
        else:
            load_file(str(path))
