"""Ended after any one of its output files, a resumed run has all files of the undisturbed one, the same in content."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.runs.folder import RunFolder
from src.runs.folder_lock import LOCK
from src.training.callbacks.logs import StepLogs
from tests.training.forked import forked
from tests.training.runs import overrides, summary, train, write_world
from tests.training.test_resume import Killed, assert_same_end

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")

SETTINGS: dict[str, Any] = {
    "trainer__max_steps": 3,
    "rollout__group_size": 2,
    "evaluation__every": 2,
    "evaluation__validation_prompts": 1,
    "evaluation__test_prompts": 1,
    "evaluation__picture_prompts": 1,
    "checkpoint__every": 1,
    "model__dtype": "float32",
}
# Nobody disturbs these: the lock is there before anything else, and the settings name the run's own folder.
CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")
NOT_COMPARED = (LOCK, "config.yaml", "summary.json", "metrics.csv", *CHECKPOINTS)


class Writings:
    """Every file a run puts in its place below `run`, in order; after the one with number `at` comes `end`.

    A file gets its place by a rename (pathlib's go through `os`); only rollouts.jsonl grows where it is.
    """

    def __init__(self, run: Path, at: int | None = None, end: Callable[[], object] = lambda: None) -> None:
        self.run, self.at, self.end = run, at, end
        self.seen: list[str] = []

    def wrote(self, path: object) -> None:
        place = Path(os.path.abspath(str(path)))
        if place.is_relative_to(self.run) and not place.name.endswith((".partial", ".replaced")):
            self.seen.append(str(place.relative_to(self.run)))
            if len(self.seen) - 1 == self.at:
                self.end()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("replace", "rename"):
            patch.setattr(os, name, self._renaming(getattr(os, name)))
        original = StepLogs._write_group

        def write_group(logs: StepLogs, *arguments: Any) -> None:
            original(logs, *arguments)
            self.wrote(logs.rollouts)

        patch.setattr(StepLogs, "_write_group", write_group)

    def _renaming(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def renaming(source: Any, target: Any, **options: Any) -> Any:
            result = original(source, target, **options)
            self.wrote(target)
            return result

        return renaming


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def assert_whole(run: Path, undisturbed: Path) -> None:
    """The same files, the same in those that do not depend on the machine, and the same end."""
    assert files(run) == files(undisturbed)
    assert_same_end(run, undisturbed)
    for name in files(undisturbed) - set(NOT_COMPARED) - {f"{one}.sha256" for one in NOT_COMPARED}:
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    rows = [set((path / "metrics.csv").read_text().splitlines()[0].split(",")) for path in (run, undisturbed)]
    assert rows[0] == rows[1], "no figure of the report is missing"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> tuple[Path, list[str]]:
    """The run nobody ended, and what it wrote in order."""
    run = world / "undisturbed"
    writings = Writings(run)
    with pytest.MonkeyPatch.context() as patch:
        writings.install(patch)
        assert train(world, run, **SETTINGS) == 0
    return run, writings.seen


def test_every_file_is_seen(undisturbed: tuple[Path, list[str]]) -> None:
    """Else the tests below would leave one out."""
    run, seen = undisturbed
    placed = {name for name in files(run) if name not in seen and not name.startswith("adapter/")}
    assert placed == {LOCK, "checkpoints/previous.ckpt"} - set(seen)
    assert "adapter" in seen
    assert set(seen[len(seen) - seen[::-1].index("summary.json") :]) <= {"metrics.csv"}, "written anew, as it was"


def test_before_json_is_the_last_file_of_the_report_before(undisturbed: tuple[Path, list[str]]) -> None:
    _, seen = undisturbed
    order = [seen.index(name) for name in ("test_before.jsonl", "samples_before.png", "before.json")]
    assert order == sorted(order)
    assert order[-1] < seen.index("checkpoints/last.ckpt")


@pytest.mark.parametrize(
    "name",
    ["test_before.jsonl", "samples_before.png", "before.json", "rollouts.jsonl", "adapter", "samples_after.png"],
)
def test_ended_after_a_file_it_ends_with_all_of_them(
    name: str, world: Path, tmp_path: Path, undisturbed: tuple[Path, list[str]]
) -> None:
    """An error right after the file's first writing."""
    expected, seen = undisturbed
    run = tmp_path / "run"

    def die() -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        Writings(run, seen.index(name), die).install(patch)
        with pytest.raises(Killed):
            train(world, run, **SETTINGS)
    assert train(world, run, resume="auto", **SETTINGS) == 0
    assert_whole(run, expected)


@pytest.mark.slow
@pytest.mark.faults
def test_killed_after_each_writing(world: Path, tmp_path: Path, undisturbed: tuple[Path, list[str]]) -> None:
    """kill -9 after each of all of them, one run each."""
    expected, seen = undisturbed
    for at in range(len(seen)):
        run = tmp_path / f"run-{at}"
        writings = Writings(run, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        command = overrides(world, run, **SETTINGS)
        ended = forked(command, tmp_path / "log", lambda one=writings: one.install(pytest.MonkeyPatch()))
        assert ended.code == -signal.SIGKILL, (seen[at], ended.output)
        ended = forked([*command, "resume=auto"], tmp_path / "log")
        assert ended.code == 0, (at, seen[at], ended.output)
        assert_whole(run, expected)


@pytest.mark.parametrize("lost", ["samples_before.png", "test_before.jsonl", "before.json"])
def test_what_an_earlier_version_left_out_is_made_with_the_weights_of_the_beginning(
    lost: str, world: Path, tmp_path: Path, undisturbed: tuple[Path, list[str]]
) -> None:
    """A run has its checkpoint and lacks a part of its first report: that part shows the model before training."""
    expected, seen = undisturbed
    run = tmp_path / "run"

    def die() -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        second = [place for place, name in enumerate(seen) if name == "checkpoints/last.ckpt"][1]
        Writings(run, second, die).install(patch)
        with pytest.raises(Killed):
            train(world, run, **SETTINGS)
    (run / lost).unlink()
    assert train(world, run, resume="auto", **SETTINGS) == 0
    assert_whole(run, expected)


def test_begun_again_with_other_settings_nothing_of_the_others_stays(world: Path, tmp_path: Path) -> None:
    """Ended before its first checkpoint: the first report is kept only where it is this run's."""
    run, other, fresh = (tmp_path / name for name in ("run", "other", "fresh"))

    def die() -> None:
        raise Killed

    for folder in (run, other):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("src.training.callbacks.checkpoints.ResumableCheckpoint.save", lambda *_: die())
            with pytest.raises(Killed):
                train(world, folder, **SETTINGS)
        assert RunFolder(folder).before.is_file()
    marked = json.loads((run / "before.json").read_text()) | {"means": {"reward": 0.125}}
    (run / "before.json").write_text(json.dumps(marked))
    assert train(world, run, resume="auto", **SETTINGS) == 0
    assert summary(run)["reward_before"] == 0.125, "the same settings: the report is not made twice"
    changed = SETTINGS | {"rollout__max_plan_tokens": 3}
    assert train(world, other, resume="auto", **changed) == 0
    assert train(world, fresh, **changed) == 0
    assert (other / "before.json").read_bytes() == (fresh / "before.json").read_bytes()
    assert_same_end(other, fresh)
