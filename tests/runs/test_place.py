"""Whose folder a run goes into: new or empty ones, never two runs in one, the same for all processes of a run."""

from __future__ import annotations

import multiprocessing
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from src.config.errors import UserError
from src.runs.folder import RunFolder, newest_unfinished
from src.runs.folder_lock import LOCK, owned
from src.runs.place import placed
from tests.runs.test_folder import STARTED, begin, config, make_run
from tests.runs.test_folder_lock import another_owner
from tests.training.runs import train, write_world

STAMP = r"exp-20\d{6}-\d{6}"


def test_started_in_the_same_second_they_get_different_folders(tmp_path: Path) -> None:
    with ExitStack() as stack:
        taken = [stack.enter_context(placed(config(tmp_path), STARTED)).folder.path for _ in range(3)]
        assert [re.sub(STAMP, "exp", path.name) for path in taken] == ["exp", "exp.2", "exp.3"]
        for path in taken:
            (path / "metrics.csv").touch()
    assert all(path.is_dir() for path in taken)
    assert begin(config(tmp_path)).folder.path.name.endswith(".4"), "nor into one whose run is over"


def begin_and_stay(root: Path, start: Any, names: Any, end: Any) -> None:
    start.wait()
    with placed(config(root), STARTED) as choice:
        names.put(choice.folder.path.name)
        end.wait()


def test_so_do_processes_that_start_together(tmp_path: Path) -> None:
    context, number = multiprocessing.get_context("fork"), 6
    start, end, names = context.Barrier(number), context.Event(), context.Queue()
    processes = [
        context.Process(target=begin_and_stay, args=(tmp_path / "runs", start, names, end)) for _ in range(number)
    ]
    for process in processes:
        process.start()
    found = [names.get(timeout=60) for _ in range(number)]
    end.set()
    for process in processes:
        process.join(60)
    assert len(set(found)) == number
    assert not list((tmp_path / "runs").iterdir()), "what stayed empty is taken away"


def test_the_jobs_of_a_sweep_keep_their_numbers_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resume=auto` finds a job's folder by it."""
    monkeypatch.setattr("src.runs.place.job_suffix", lambda: "-1")
    with ExitStack() as stack:
        names = [stack.enter_context(placed(config(tmp_path), STARTED)).folder.path.name for _ in range(2)]
    assert [re.sub(STAMP, "exp", name) for name in names] == ["exp-1", "exp.2-1"]
    run = make_run(tmp_path / names[1])
    assert newest_unfinished(tmp_path, "exp", "-1") == run
    assert newest_unfinished(tmp_path, "exp") is None


@pytest.mark.parametrize("name", ["exp-20260101-000001.2", "exp-job77.0", "exp-job77.0.1"])
def test_auto_finds_every_name_that_is_given(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / name)
    assert newest_unfinished(tmp_path, "exp") == run


def test_the_other_processes_of_a_run_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They neither choose nor own, and the folder is not new any more when they come."""
    monkeypatch.setenv("BICOT_FIRST_PLACE", "")
    with placed(config(tmp_path), STARTED), placed(config(tmp_path), STARTED) as first:
        (first.folder.path / "config.yaml").touch()
        with monkeypatch.context() as patch:
            patch.setenv("LOCAL_RANK", "1")
            with placed(config(tmp_path), STARTED + 3) as other:
                assert other == first


def test_and_what_they_resume_is_what_the_first_one_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BICOT_FIRST_PLACE", "")
    run = make_run(tmp_path / "exp-20260101-000001", age=50)
    with placed(config(tmp_path, resume="auto"), STARTED) as first:
        make_run(tmp_path / "exp-20260101-000002", age=0)
        with monkeypatch.context() as patch:
            patch.setenv("LOCAL_RANK", "1")
            with placed(config(tmp_path, resume="auto"), STARTED) as other:
                assert other == first
                assert (other.folder, other.checkpoint) == (run, run.last_checkpoint)


@pytest.mark.parametrize("how", ["run.dir", "resume=PATH", "resume=auto", "resume=auto in run.dir"])
def test_a_folder_of_a_running_run_is_refused(how: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "exp-20260101-000001")
    asked = {
        "run.dir": config(tmp_path, run.path),
        "resume=PATH": config(tmp_path, resume=run.path),
        "resume=auto": config(tmp_path, resume="auto"),
        "resume=auto in run.dir": config(tmp_path, run.path, resume="auto"),
    }[how]
    with another_owner(run.path) as process:
        with pytest.raises(UserError, match=rf"another process is writing there \(pid {process.pid} on .*\); wait"):
            begin(asked)
        process.kill()
        process.wait()
        if how != "run.dir":
            assert begin(asked).checkpoint == run.last_checkpoint


def test_of_two_that_want_one_new_folder_one_gets_it(tmp_path: Path) -> None:
    here = tmp_path / "here"
    with placed(config(tmp_path, here), STARTED), pytest.raises(UserError, match=r"run\.dir=.*here: another process"):
        begin(config(tmp_path, here))
    assert not here.exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "notes.txt", ".git", "adapter"])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_foreign_file_is_named_and_left_alone(name: str, resume: str | None, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / name).write_text("somebody else's")
    with pytest.raises(
        UserError, match=rf"run\.dir=.*here: is not empty, it contains {re.escape(name)}; .*another run.dir"
    ):
        begin(config(tmp_path, here, resume))
    assert [path.name for path in here.iterdir()] == [name]
    assert (here / name).read_text() == "somebody else's"


def test_empty_is_new(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    assert begin(config(tmp_path, here)).folder.path == here
    assert list(here.iterdir()) == [], "as it was"
    with owned(here, "a run that was killed at once"):
        pass
    assert begin(config(tmp_path, here)).folder.path == here


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    with pytest.raises(UserError, match=r"run\.dir=.*here: is a file"):
        begin(config(tmp_path, tmp_path / "here"))


def test_ended_before_its_first_checkpoint_a_run_begins_again_with_auto_only(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "here")
    run.path.mkdir()
    (run.path / LOCK).touch()
    run.before.touch()
    run.before.with_name("before.json.partial").touch()
    with pytest.raises(UserError, match="holds a run already"):
        begin(config(tmp_path, run.path))
    assert begin(config(tmp_path, run.path, "auto")).checkpoint is None
    assert sorted(path.name for path in run.path.iterdir()) == ["before.json", LOCK]


def test_a_checkpoint_outside_of_a_run_folder_is_not_written_beside(tmp_path: Path) -> None:
    """The run folder would be whatever lies two folders above it."""
    (tmp_path / "backup").mkdir()
    lonely = tmp_path / "backup" / "last.ckpt"
    lonely.touch()
    with pytest.raises(UserError, match=r"resume=.*last\.ckpt: is in no run folder"):
        begin(config(tmp_path, resume=lonely))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, run = write_world(tmp_path / "world"), tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "metrics.csv"):
        (run / name).write_text("step,mine\n1,2\n")
    assert train(world, run) == 2
    assert f"error: run.dir={run}: is not empty, it contains config.yaml and 1 more;" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in run.iterdir()} == dict.fromkeys(
        ("config.yaml", "metrics.csv"), "step,mine\n1,2\n"
    )
