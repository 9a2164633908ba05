"""What a run resumes from: its folder, a valid checkpoint, the settings it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.config.errors import UserError
from src.config.factories import current
from src.config.masking import masked
from src.policies.weight_files import CheckpointError, check_finite
from src.runs.config import literal, read_run_config
from src.runs.console import say
from src.runs.files import (
    WrongForm,
    damaged,
    mapping,
    need,
    read_before,
    read_metrics,
    read_rollouts,
    weight_shapes,
)
from src.runs.folder import RunFolder, newest_unfinished, write_text
from src.runs.sound_files import checksum_path, damage

# A checkpoint belongs to these settings; with different ones it would be another run.
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
    "rollout.engine",  # in run folders of before 2026-12: switches that only a benchmark has now
    "rewards.devices",
    "rewards.remote",
    "rewards.watch",
)

# What the callbacks of a run read of a checkpoint.
CALLBACK_STATES = {
    "BestByValidation": ("best", "best_step", "history", "pending"),
    "RunReport": ("seconds_training", "seconds_total"),
    "RewardWatch": ("history", "silent", "warnings"),
}
BEST_AGAIN = "delete it to go on, and the best weights from here on count"


@dataclass(frozen=True, slots=True)
class Choice:
    """The folder of a run and what it resumes from.

    checkpoint: None for a new run. given: the setting that named the folder, None for a name made from the
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
    """Returns `checkpoint` after checking its checksum and that of the best weights.

    Raises:
        UserError: naming what is damaged, and the newest sound checkpoint with the setting that resumes from it.
    """
    problem = damage(checkpoint) if checkpoint.is_file() else "it is missing"
    if problem is not None:
        raise UserError(f"{checkpoint}: damaged: {problem}; {_offer(folder, checkpoint)}")
    if not checksum_path(checkpoint).exists():
        say(f"{checkpoint}: has no checksum next to it ({checksum_path(checkpoint).name}), using it unchecked")
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
    """What a checkpoint holds, on the CPU, its form checked.

    Raises:
        UserError: if it is not the checkpoint of a training run.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        check_checkpoint(state)
    except Exception as error:
        # Whatever torch's reader stumbles over in a file of another kind: it knows many forms.
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{checkpoint}: not a checkpoint of a training run ({first[:200]}); give another one with resume=PATH"
        ) from error
    return dict(state)


def check_checkpoint(state: Any) -> None:
    """Raise WrongForm unless `state` has what Lightning and the parts of a run read from it."""

    def entry(name: str, kind: type | tuple[type, ...], where: Any) -> Any:
        value = need(mapping(where), name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise WrongForm(f"{name} has the wrong form")
        return value

    entry("global_step", int, state)
    entry("epoch", int, state)
    entry("pytorch-lightning_version", str, state)
    for name, value in entry("state_dict", dict, state).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WrongForm("state_dict contains something other than weights by name")
    loop = entry("fit_loop", dict, entry("loops", dict, state))
    for part in ("epoch_loop.state_dict", "epoch_loop.batch_progress", "epoch_progress"):
        entry(part, dict, loop)
    entry("finished_batches", int, entry("epoch_loop.manual_optimization.state_dict", dict, loop))
    for optimizer in entry("optimizer_states", list, state):
        entry("state", dict, optimizer)
        for group in entry("param_groups", list, optimizer):
            entry("params", list, group)
            entry("betas", (list, tuple), group)
    for schedule in entry("lr_schedulers", list, state):
        entry("last_epoch", int, schedule)
    callbacks = entry("callbacks", dict, state)
    for name, wanted in CALLBACK_STATES.items():
        for wanted_entry in wanted:
            need(mapping(callbacks.get(name, dict.fromkeys(wanted)), name), wanted_entry, name)


def finished_batches(checkpoint: Path) -> int:
    """How many prompt batches the run had finished when `checkpoint` was written."""
    loop = checkpoint_state(checkpoint)["loops"]["fit_loop"]
    return int(loop["epoch_loop.manual_optimization.state_dict"]["finished_batches"])


def check_files(folder: RunFolder, checkpoint: Path | None) -> None:
    """Raise UserError for a damaged or malformed file of a run that is resumed or restarted.

    Checks every file the run will read, so errors appear before any weight is loaded.
    """
    if folder.before.is_file():
        read_before(folder)
    if folder.rollouts.is_file():
        read_rollouts(folder.rollouts)
    if folder.metrics.is_file():
        read_metrics(folder.metrics)
    if checkpoint is not None and folder.best_weights.is_file():
        held = weight_shapes(folder.best_weights, BEST_AGAIN)
        trained = {name: tuple(value.shape) for name, value in checkpoint_state(checkpoint)["state_dict"].items()}
        if held != trained:
            name = next(name for name in {**held, **trained} if held.get(name) != trained.get(name))
            raise damaged(folder.best_weights, f"{name} is not as in {checkpoint.name}", BEST_AGAIN)


def forget_other_run(folder: RunFolder, config: DictConfig) -> None:
    """Before a restart of a run that ended before its first checkpoint: delete what other settings made."""
    if folder.config.is_file() and not _changes(folder, config):
        return
    before = (folder.before, folder.test_samples("before"), folder.samples("before"))
    for path in (*before, folder.rollouts, folder.metrics):
        path.unlink(missing_ok=True)


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
    changes = _changes(folder, config)
    if not changes:
        return
    told = "\n".join(f"  {name}={new} (the run: {old})" for name, (old, new) in changes.items())
    if not config.resume.allow_changes:
        raise UserError(
            f"resume: {len(changes)} of the settings are not those {folder.path} was made with:\n{told}\n"
            f"give its own (they stand in {folder.config}), or resume.allow_changes=true to go on with these"
        )
    text = folder.config.read_text(encoding="utf-8")
    kept = _unused(folder.path / "config.before-resume.yaml", text)
    write_text(kept, text)
    say(f"resume.allow_changes=true: from here on\n{told}\n(the settings until here: {kept})")


def _where_it_stands(value: Any) -> Any:
    """The settings with every ``_target_`` by its current path: a moved factory is not a change of settings."""
    if isinstance(value, Mapping):
        return {key: current(one) if key == "_target_" else _where_it_stands(one) for key, one in value.items()}
    return [_where_it_stands(one) for one in value] if isinstance(value, list) else value


def _changes(folder: RunFolder, config: DictConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that matter and differ from those in the folder, by dotted key: (the folder's, the present ones)."""
    # The file keeps no secrets: values masked in both count as the same.
    held = OmegaConf.to_container(config, resolve=True)
    made, now = (literal(masked(_where_it_stands(given))) for given in (read_run_config(folder.config), held))
    return {
        name: (OmegaConf.select(made, name), OmegaConf.select(now, name))
        for key in FIXED
        for name in difference(_plain(made, key), _plain(now, key), key)
        if not any(name == free or name.startswith(f"{free}.") for free in FREE)
    }


def difference(old: Any, new: Any, key: str) -> list[str]:
    """The dotted keys under which two plain configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [found for name in names for found in difference(old.get(name), new.get(name), f"{key}.{name}")]
    return [] if old == new else [key]


def _plain(config: Any, key: str) -> Any:
    node = OmegaConf.select(config, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _unused(path: Path, text: str) -> Path:
    """`path`, or the first of ``<stem>-2``, ``<stem>-3`` ... that does not exist, or holds this very text already."""
    number, found = 1, path
    while found.exists() and found.read_bytes() != text.encode():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found
