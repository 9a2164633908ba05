"""Where a run lives and what it goes on from: the folder, a sound checkpoint, the settings it was made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.config import UserError
from src.masking import masked
from src.policies.weight_files import CheckpointError, check_finite
from src.training.console import say
from src.training.run_folder import RunFolder, newest_unfinished, write_text
from src.training.sound_files import checksum_path, damage

# A checkpoint is a state of these settings; with others it would be another run.
FIXED = ("model", "rewards", "data", "algorithm", "rollout", "optim", "run.seed")
# But not how a step is computed, which leaves its objective alone (a run that did not fit may go on otherwise), nor
# where the experts are (a server may come back at another address), nor when to give up.
FREE = (
    "optim.microbatch",
    "optim.split_levels",
    "optim.activation_checkpointing",
    "optim.max_skipped_steps",
    "rollout.max_rows",
    "rollout.graph",
    "rollout.engine",
    "rewards.devices",
    "rewards.remote",
    "rewards.watch",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which folder a run goes into and what it goes on from.

    checkpoint: None for a run that begins. given: the setting that named the folder, None for a name made from the
    time. again: whether files of a run that was ended before its first checkpoint may be there.
    """

    folder: RunFolder
    checkpoint: Path | None = None
    given: str | None = None
    again: bool = False

    @property
    def told(self) -> str:
        """The folder as messages name it."""
        return self.given or f"run.root: {self.folder.path}"


def choose(config: DictConfig, stamp: str, suffix: str = "") -> Choice:
    """Where the run goes, by its settings and by what is on disk; nothing is written or verified.

    stamp: the time in a fresh run's name; suffix: what tells the jobs of a sweep apart.

    Raises:
        UserError: if there is nothing to resume at the path that was given.
    """
    run, given = config.run, config.resume.path
    named = f"run.dir={run.dir}{suffix}" if run.dir else None
    fresh = RunFolder(Path(run.dir + suffix) if run.dir else Path(run.root) / f"{run.name}-{stamp}{suffix}")
    if given is None:
        return Choice(fresh, given=named)
    if given == "auto":
        found = fresh if run.dir else newest_unfinished(Path(run.root), run.name, suffix)
        if found is None or not found.checkpoints():
            return Choice(fresh, given=named, again=True)
        return Choice(found, found.last_checkpoint, named or f"resume=auto: {found.path}")
    path = Path(given)
    folder = RunFolder(path if path.is_dir() else path.parent.parent)
    checkpoint = folder.last_checkpoint if path.is_dir() else path
    if path.is_file() and path.parent.name != folder.last_checkpoint.parent.name:
        raise UserError(
            f"resume={given}: is in no run folder, and a resumed run writes into its own: put the checkpoint into"
            f" checkpoints/ of the run folder, or give that folder"
        )
    if not checkpoint.is_file() and not (path.is_dir() and folder.checkpoints()):
        raise UserError(f"resume={given}: no checkpoint there ({checkpoint}); give a run folder, or resume=auto")
    return Choice(folder, checkpoint, f"resume={given}")


def sound_checkpoint(folder: RunFolder, checkpoint: Path) -> Path:
    """`checkpoint`, after its checksum and that of the best weights were compared with the files.

    Raises:
        UserError: naming what is damaged, and the newest sound checkpoint with the setting that resumes from it.
    """
    problem = damage(checkpoint) if checkpoint.is_file() else "it is missing"
    if problem is not None:
        raise UserError(f"{checkpoint}: damaged: {problem}; {_offer(folder, checkpoint)}")
    if not checksum_path(checkpoint).exists():
        say(f"{checkpoint}: has no checksum beside it ({checksum_path(checkpoint).name}), taken as it is")
    problem = damage(folder.best_weights) if folder.best_weights.is_file() else None
    if problem is not None:
        raise UserError(
            f"{folder.best_weights}: damaged: {problem}; the best weights so far are lost, the checkpoint is sound:"
            " delete that file to go on, and the best weights from here on count"
        )
    return checkpoint


def _offer(folder: RunFolder, bad: Path) -> str:
    for other in folder.checkpoints():
        if other == bad or damage(other) is not None:
            continue
        try:
            step = checkpoint_state(other)["global_step"]
        except UserError:
            continue
        return f"the newest valid one is that of step {step}: the same command with resume={other}"
    return f"there is no other valid one; begin again in another folder (run.dir), without resume={folder.path}"


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Raises:
        UserError: if it is none.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise UserError(f"{checkpoint}: no readable checkpoint of a training run ({error})") from error
    if not isinstance(state, dict) or not {"loops", "global_step", "state_dict"} <= state.keys():
        raise UserError(f"{checkpoint}: no readable checkpoint of a training run (it lacks Lightning's entries)")
    return state


def finished_batches(checkpoint: Path) -> int:
    """How many prompt batches the run had finished when `checkpoint` was written."""
    loop = checkpoint_state(checkpoint)["loops"]["fit_loop"]
    try:
        return int(loop["epoch_loop.manual_optimization.state_dict"]["finished_batches"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}: no readable checkpoint of a training run (no {error})") from error


def refuse_other_weights(checkpoint: Path, trained: dict[str, Tensor]) -> None:
    """Raise UserError unless `checkpoint` holds just the parameters that are trained now, and no NaN."""
    state = checkpoint_state(checkpoint)["state_dict"]
    held = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {name: tuple(value.shape) for name, value in trained.items()}
    if held != wanted:
        name = next(n for n in {**wanted, **held} if held.get(n) != wanted.get(n))
        raise UserError(
            f"resume: {checkpoint} holds other weights than are trained now ({name}: {held.get(name, 'absent')} there,"
            f" {wanted.get(name, 'absent')} now); resume.allow_changes=true cannot bridge that: keep model.*"
        )
    try:
        check_finite(state, f"resume={checkpoint}")
    except CheckpointError as error:
        raise UserError(str(error)) from error


def check_settings(folder: RunFolder, config: DictConfig) -> None:
    """Compare a resumed run's settings with those it was made with.

    Raises:
        UserError: with every difference, where there is one that matters, unless ``resume.allow_changes=true``.
    """
    if not folder.config.is_file():
        return
    # The file keeps no secrets: what is masked in both is taken for the same.
    made, now = (_masked(given) for given in (OmegaConf.load(folder.config), config))
    changes = {
        name: (OmegaConf.select(made, name), OmegaConf.select(now, name))
        for key in FIXED
        for name in difference(_plain(made, key), _plain(now, key), key)
        if not any(name == free or name.startswith(f"{free}.") for free in FREE)
    }
    if not changes:
        return
    told = "\n".join(f"  {name}={new} (the run: {old})" for name, (old, new) in changes.items())
    if not config.resume.allow_changes:
        raise UserError(
            f"resume: {len(changes)} of the settings are not those {folder.path} was made with:\n{told}\n"
            f"give its own (they stand in {folder.config}), or resume.allow_changes=true to go on with these"
        )
    kept = _unused(folder.path / "config.before-resume.yaml")
    write_text(kept, folder.config.read_text(encoding="utf-8"))
    say(f"resume.allow_changes=true: from here on\n{told}\n(the settings until here: {kept})")


def difference(old: Any, new: Any, key: str) -> list[str]:
    """The dotted keys under which two plain configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [found for name in names for found in difference(old.get(name), new.get(name), f"{key}.{name}")]
    return [] if old == new else [key]


def _masked(config: Any) -> DictConfig:
    return OmegaConf.create(masked(OmegaConf.to_container(config, resolve=True)))


def _plain(config: Any, key: str) -> Any:
    node = OmegaConf.select(config, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _unused(path: Path) -> Path:
    """`path`, or the first of ``<stem>-2``, ``<stem>-3`` ... that does not exist."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found
