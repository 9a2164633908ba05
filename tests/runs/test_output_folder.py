"""Folders that commands write: whole or not at all, one writer at a time, and nobody else's files in them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from src.compare import command as compare
from src.config.errors import UserError
from src.evaluate import command as evaluate
from src.export import command as export
from src.generate import command as generate
from src.runs.output_folder import check_free, new_folder, replaced_whole, written_whole

OWN = ("images", "*.json")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and_fail(out: Path) -> None:
    with written_whole(out, overwrite=True) as folder:
        (folder / "b").write_text("2")
        raise ZeroDivisionError


def write_while_another_does(out: Path) -> None:
    with written_whole(out) as folder:
        (folder / "a").write_text("1")
        out.mkdir()
        (out / "theirs").touch()


def test_what_is_there_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_free(out, False, OWN)
    out.mkdir()
    check_free(out, False, OWN)
    (out / "a.json").touch()
    with pytest.raises(UserError, match=r"out=.*out: is not empty; .*overwrite=true"):
        check_free(out, False, OWN)
    check_free(out, True, OWN)
    with pytest.raises(UserError, match="is a file"):
        check_free(out / "a.json", True, OWN)


@pytest.mark.parametrize("command", [compare, evaluate, export, generate])
@pytest.mark.parametrize("name", ["notes.docx", ".git", "run.lock", "checkpoints", "config.yaml", "metrics.csv"])
def test_overwrite_deletes_nothing_of_somebody_else(command: object, name: str, tmp_path: Path) -> None:
    """A run's folder, a repository, a home: `overwrite=true` would delete all of it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).touch()
    with pytest.raises(UserError, match=rf"holds {name}, which this command did not write .*another folder"):
        check_free(out, True, command.WRITTEN)  # type: ignore[attr-defined]


def test_it_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with written_whole(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(out) == ["a"]
    with pytest.raises(ZeroDivisionError):
        write_and_fail(out)
    assert names(tmp_path / "deep") == ["out"]
    assert names(out) == ["a"]
    with written_whole(out, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert names(out) == ["b"]
    assert names(tmp_path / "deep") == ["out"]


def test_what_came_there_meanwhile_stays_and_the_work_is_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"out=.*cannot be moved into place .*what was made stays in .*out\.partial"):
        write_while_another_does(out)
    assert names(out) == ["theirs"]
    assert names(tmp_path / "out.partial") == ["a"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for overwrite in (False, True):
        with written_whole(tmp_path / "link", overwrite) as folder:
            (folder / "a").touch()
        assert names(tmp_path) == ["link", "real"]
        assert (tmp_path / "link").is_symlink()
        assert names(tmp_path / "real") == ["a"]


def test_two_do_not_write_the_same_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with written_whole(out) as folder:
        (folder / "a").touch()
        with pytest.raises(UserError, match=r"out=.*another process is writing there \(pid "), written_whole(out):
            pass
        assert names(folder) == ["a", "run.lock"]
    assert names(out) == ["a"]


def test_of_a_killed_command_nothing_is_taken_over(tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    (left / "images").mkdir(parents=True)
    (left / "old").touch()
    with written_whole(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert names(tmp_path / "out") == ["new"]


def test_the_adapter_of_a_run_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (tmp_path / "adapter.replaced").mkdir()  # killed between two renames
    for text in ("1", "2"):
        with replaced_whole(folder) as partial:
            (partial / "weights").write_text(text)
        assert (folder / "weights").read_text() == text
        assert names(tmp_path) == ["adapter"]


def test_names_by_the_time_do_not_collide(tmp_path: Path) -> None:
    found: list[Path] = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        found.append(new_folder(str(tmp_path / "deep" / "generated")))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8
    assert all(path.is_dir() for path in found)
