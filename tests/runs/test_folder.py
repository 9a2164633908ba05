"""Where a run lives, which one is resumed, and files that are written whole."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from src.config.errors import UserError
from src.runs.folder import RunFolder, newest_unfinished, write_json, write_text
from src.runs.metrics_file import MetricsFile
from src.runs.place import placed
from src.runs.resume import Choice, choose, sound_checkpoint
from src.runs.sound_files import CannotSave, partial_path

STARTED = 1_735_732_800.0


def config(tmp_path: Path, directory: Path | None = None, resume: Any = None, name: str = "exp") -> Any:
    run = SimpleNamespace(dir=None if directory is None else str(directory), root=str(tmp_path), name=name)
    return SimpleNamespace(run=run, resume=SimpleNamespace(path=None if resume is None else str(resume)))


def locate(config: Any) -> tuple[RunFolder, Path | None]:
    choice = choose(config, "20250101-120000")
    return choice.folder, choice.checkpoint


def begin(config: Any) -> Choice:
    """Where a run would go; its folder is given back at once."""
    with placed(config, STARTED) as choice:
        return choice


def make_run(path: Path, finished: bool | None = None, age: int = 0) -> RunFolder:
    """A folder with a checkpoint, and a summary unless `finished` is None."""
    run = RunFolder(path)
    run.last_checkpoint.parent.mkdir(parents=True)
    run.last_checkpoint.write_bytes(b"x")
    os.utime(run.last_checkpoint, (1_000_000 - age, 1_000_000 - age))
    if finished is not None:
        run.summary.write_text(json.dumps({"finished": finished}))
    return run


def test_a_fresh_run_is_named_by_its_time(tmp_path: Path) -> None:
    folder, checkpoint = locate(config(tmp_path))
    assert checkpoint is None
    assert folder.path.parent == tmp_path
    name, _, stamp = folder.path.name.partition("-")
    assert name == "exp"
    assert len(stamp) == len("20250101-120000")
    assert not folder.path.exists()


def test_run_dir_is_taken_as_it_is(tmp_path: Path) -> None:
    assert locate(config(tmp_path, tmp_path / "here")) == (RunFolder(tmp_path / "here"), None)


@pytest.mark.parametrize("finished", [None, False, True])
def test_an_existing_run_is_not_overwritten(tmp_path: Path, finished: bool | None) -> None:
    run = make_run(tmp_path / "here", finished)
    with pytest.raises(UserError, match=r"run\.dir=.*here: holds a run already.*resume=auto"):
        begin(config(tmp_path, run.path))


def test_auto_takes_the_newest_that_is_not_finished(tmp_path: Path) -> None:
    make_run(tmp_path / "exp-20260101-000001", finished=True, age=0)
    newest = make_run(tmp_path / "exp-20260101-000002", finished=False, age=10)
    make_run(tmp_path / "exp-20260101-000003", age=20)
    make_run(tmp_path / "other-1", age=0)
    (tmp_path / "exp-20260101-000004").mkdir()  # stopped before its first checkpoint
    assert newest_unfinished(tmp_path, "exp") == newest
    assert locate(config(tmp_path, resume="auto")) == (newest, newest.last_checkpoint)


def test_auto_begins_where_there_is_nothing_to_resume(tmp_path: Path) -> None:
    folder, checkpoint = locate(config(tmp_path, resume="auto"))
    assert checkpoint is None
    assert folder.path.name.startswith("exp-")
    assert locate(config(tmp_path, tmp_path / "here", resume="auto")) == (RunFolder(tmp_path / "here"), None)
    assert newest_unfinished(tmp_path / "no-such", "exp") is None


def test_auto_with_a_folder_takes_that_one(tmp_path: Path) -> None:
    make_run(tmp_path / "exp-20260101-000002", age=0)
    run = make_run(tmp_path / "here", age=50)
    assert locate(config(tmp_path, run.path, resume="auto")) == (run, run.last_checkpoint)


def test_a_path_may_be_a_folder_or_a_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "here")
    assert locate(config(tmp_path, resume=run.path)) == (run, run.last_checkpoint)
    assert locate(config(tmp_path, resume=run.last_checkpoint)) == (run, run.last_checkpoint)


@pytest.mark.parametrize("path", ["nowhere", "empty", "here/checkpoints/other.ckpt"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path, path: str) -> None:
    make_run(tmp_path / "here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"resume=.*: no checkpoint there"):
        locate(config(tmp_path, resume=tmp_path / path))


def test_a_damaged_summary_is_no_finished_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "exp-20260101-000001")
    run.summary.write_text("{")
    assert newest_unfinished(tmp_path, "exp") == run


def test_files_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": [1, "ü"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, "ü"]}

    def crash(number: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "half")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, "ü"]}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_grow_columns_and_merge_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = MetricsFile(path)
    assert isinstance(logger, Logger)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"b": 2.0}, step=2)
    logger.log_metrics({"validation/a": 3.0}, step=1)
    logger.log_metrics({"a": 0.5}, step=0)
    logger.save()
    assert rows(path) == [
        {"step": "0", "a": "0.5", "b": "", "validation/a": ""},
        {"step": "1", "a": "1.0", "b": "", "validation/a": "3.0"},
        {"step": "2", "a": "", "b": "2.0", "validation/a": ""},
    ]


def test_metrics_go_on_where_a_resume_begins(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(5):
        first.log_metrics({"a": step / 10}, step=step)
    first.finalize("success")
    second = MetricsFile(path)
    second.drop_after(2)
    second.log_metrics({"a": 9.0}, step=3)
    second.save()
    assert [(row["step"], row["a"]) for row in rows(path)] == [
        ("0", "0.0"),
        ("1", "0.1"),
        ("2", "0.2"),
        ("3", "9.0"),
    ]


def test_metrics_are_written_every_so_often(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "metrics.csv", flush_every=3)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"a": 1.0}, step=2)
    assert not logger.path.exists()
    logger.log_metrics({"a": 1.0}, step=3)
    assert len(rows(logger.path)) == 3


def test_auto_does_not_take_a_run_whose_name_only_begins_alike(tmp_path: Path) -> None:
    make_run(tmp_path / "exp-wide-20260101-000001")
    make_run(tmp_path / "exp-20260101-000001-1")
    assert newest_unfinished(tmp_path, "exp") is None
    assert newest_unfinished(tmp_path, "e*p") is None
    assert newest_unfinished(tmp_path, "exp", "-1") == RunFolder(tmp_path / "exp-20260101-000001-1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_figures_that_a_full_disk_refuses_do_not_hide_what_ended_the_run(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "metrics.csv")
    logger.log_metrics({"a": 1.0}, step=1)
    partial_path(logger.path).symlink_to("/dev/full")
    with pytest.raises(CannotSave, match=r"metrics\.csv: cannot be written .No space left on device"):
        logger.finalize("success")
    partial_path(logger.path).symlink_to("/dev/full")
    logger.finalize("failed")
    assert not logger.path.exists()


def test_what_is_left_says_how_to_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "here")
    assert f"the last good checkpoint is {run.last_checkpoint}" in run.what_is_left()
    assert f"resume={run.path}" in run.what_is_left()
    assert "no checkpoint was written yet" in RunFolder(tmp_path / "none").what_is_left()


def test_a_run_that_lost_its_last_checkpoint_is_still_one_to_resume(tmp_path: Path) -> None:
    run = make_run(tmp_path / "exp-20260101-000001")
    run.last_checkpoint.rename(run.previous_checkpoint)
    assert newest_unfinished(tmp_path, "exp") == run
    with pytest.raises(UserError, match=r"last\.ckpt: damaged: it is missing"):
        sound_checkpoint(*locate(config(tmp_path, run.path, resume="auto")))  # type: ignore[arg-type]
