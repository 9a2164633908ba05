"""The run's folder: new or resumed, the same for all its processes, and owned only by this run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path

from omegaconf import DictConfig

from src.config.errors import UserError
from src.runs import launched
from src.runs.folder import RunFolder, remove_partial_files
from src.runs.folder_lock import LOCK, owned, owner, taken
from src.runs.resume import Choice, choose


@contextmanager
def placed(config: DictConfig, started: float) -> Iterator[Choice]:
    """Where the run goes; its folder exists and is owned by this run while the block runs.

    The first process chooses and owns the folder and passes its name to the others. started: the time in a new
    folder's name, in seconds since 1970. A new folder that stays empty is removed.

    Raises:
        UserError: for a folder that another process owns, that holds something else, or that cannot be made; if there
            is nothing to resume.
    """
    suffix = job_suffix()
    stamp = launched.job_name() or datetime.fromtimestamp(started).strftime("%Y%m%d-%H%M%S")
    # Each process finds a folder that is named in the settings by itself.
    named = config.run.dir is not None or config.resume.path not in (None, "auto")
    key = f"PLACE{suffix}"
    if not launched.is_first():
        word = None if named and not launched.can_tell() else launched.told(key)
        yield choose(config, stamp, suffix) if word is None else _understood(word)
        return
    with _claimed(choose(config, stamp, suffix), suffix) as choice:
        if launched.can_tell() or not (named or launched.job_name()):
            launched.tell(key, _word(choice))
        yield choice


def job_suffix() -> str:
    """What tells the folders of a sweep's jobs apart; empty outside of one."""
    from src.runs.launched import job_number

    job = job_number()
    return "" if job is None else f"-{job}"


def check_new(choice: Choice, mine: bool = False) -> None:
    """Raise UserError unless the folder of `choice` is new or empty, so that a run may start in it.

    After ``resume=auto`` a run that ended before its first checkpoint is allowed, too. mine: this process has the lock.
    """
    folder, told = choice.folder, choice.told
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{told}: is a file; give a folder")
    entries = sorted(path.name for path in folder.path.iterdir()) if folder.path.is_dir() else []
    others = [name for name in entries if name != LOCK]
    if not mine and (who := owner(folder.path)) is not None:
        raise taken(told, who)
    if not others or (choice.again and LOCK in entries and not folder.checkpoints()):
        return
    if LOCK in entries or folder.summary.exists() or folder.checkpoints():
        raise UserError(f"{told}: holds a run already; choose another folder or add resume=auto")
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    raise UserError(
        f"{told}: is not empty, it contains {others[0]}{more}; a new run needs a new or empty folder: choose another"
        " run.dir, or go on with a run by resume=PATH"
    )


@contextmanager
def _claimed(choice: Choice, suffix: str) -> Iterator[Choice]:
    """Own the folder of `choice`, created if needed."""
    if choice.checkpoint is not None:
        with owned(choice.folder.path, choice.told):
            remove_partial_files(choice.folder)
            yield choice
        return
    if choice.given is None and launched.can_tell():
        choice, new = replace(choice, folder=RunFolder(_new_folder(choice.folder.path, suffix))), True
    else:
        check_new(choice)
        new = _make(choice.folder.path, choice.told)
    path = choice.folder.path
    marked = (path / LOCK).exists()
    with owned(path, choice.told):
        check_new(choice, mine=True)
        remove_partial_files(choice.folder)
        try:
            yield choice
        finally:
            if not marked and [one.name for one in path.iterdir()] == [LOCK]:
                (path / LOCK).unlink()
                if new:
                    path.rmdir()


def _new_folder(path: Path, suffix: str) -> Path:
    """A folder that this process made: `path`, or with ``.2``, ``.3`` ... before its suffix where that is taken."""
    _make(path.parent, f"run.root={path.parent}")
    stem = path.name.removesuffix(suffix)
    for number in count(1):
        found = path.with_name(stem + ("" if number == 1 else f".{number}") + suffix)
        try:
            found.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"run.root={path.parent}: cannot be written ({error.strerror}); choose another") from error
        return found
    raise AssertionError("count has no end")


def _make(path: Path, told: str) -> bool:
    """Create a folder; returns whether it is new."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(f"{told}: cannot be made ({error.strerror}); choose another folder") from error
    return True


def _word(choice: Choice) -> str:
    checkpoint = None if choice.checkpoint is None else str(choice.checkpoint)
    return json.dumps([str(choice.folder.path), checkpoint, choice.given, choice.again])


def _understood(word: str) -> Choice:
    folder, checkpoint, given, again = json.loads(word)
    return Choice(RunFolder(Path(folder)), None if checkpoint is None else Path(checkpoint), given, again)
