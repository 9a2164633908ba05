"""How Lightning's checkpoints reach the disk: whole, with a checksum, and the one before kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from src.runs.folder import PREVIOUS
from src.runs.sound_files import write_whole


class SoundCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint straight to its folder (Lightning would go through memory and the system's ``/tmp``).

    The checkpoint that is replaced becomes ``previous.ckpt`` if it is known to be sound: written by this process, or
    the one the run was resumed from. So a damaged one never takes the place of a good one.
    """

    def __init__(self, resumed_from: Path | None = None) -> None:
        self._sound = set() if resumed_from is None else {resumed_from.resolve()}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises CannotSave if the disk is full; existing checkpoints stay unchanged."""
        if storage_options is not None:
            raise TypeError(f"SoundCheckpointIO: storage_options={storage_options}: expected None")
        path = Path(path)
        kept = path.with_name(PREVIOUS) if path.resolve() in self._sound else None
        write_whole(path, lambda file: torch.save(checkpoint, file), keep_as=kept)
        self._sound.add(path.resolve())
