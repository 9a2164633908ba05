"""The weight files of a checkpoint directory: safetensors, or pickled tensors read without running any code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from torch import Tensor

# The names transformers writes, in the order it looks for them; each may be an index of shards instead.
NAMES = ("model.safetensors", "pytorch_model.bin")
PICKLED = (".bin", ".pt", ".pth")
# Files that trainers leave next to the weights.
NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "adapter_model.*")


class CheckpointError(ValueError):
    """A checkpoint directory is missing, damaged or of another family; the message names path and fix."""


def read_json(file: Path) -> dict[str, object]:
    """A JSON object.

    Raises:
        CheckpointError: if the file is missing, not JSON, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: not found; model.path must be a checkpoint directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); the checkpoint is damaged") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def could_be_path(text: str) -> bool:
    """Whether a text from a file can be a path: no NUL, no part longer than a file name."""
    encoded = text.encode(errors="surrogatepass")
    return b"\0" not in encoded and len(encoded) < 4096 and all(len(part) <= 255 for part in encoded.split(b"/"))


def check_finite(tensors: Mapping[str, Tensor], file: object) -> None:
    """Raise CheckpointError, naming the first tensor of `file` that holds NaN or infinity."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{file}: {name} contains NaN or infinity; give weights from before the training diverged"
            )


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint directory; only an index is opened.

    Looks for transformers' own names (safetensors first), then every ``*.safetensors``, then every ``*.bin``,
    ``*.pt`` and ``*.pth`` that is not a trainer's state.

    Raises:
        CheckpointError: if there is none, or an index names a file that is not there.
    """
    for name in NAMES:
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder, folder / f"{name}.index.json")
        if (folder / name).is_file():
            return [folder / name]
    for endings in ((".safetensors",), PICKLED):
        found = [f for f in sorted(folder.iterdir()) if f.suffix in endings and not any(map(f.match, NO_WEIGHTS))]
        if found:
            return found
    raise CheckpointError(f"{folder}: contains no weights, neither *.safetensors nor *.bin")


def _shards(folder: Path, index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map; the checkpoint is damaged")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name or not could_be_path(name):
            raise CheckpointError(f"{index}: names the shard {name!r}; a shard must be next to its index")
        if not (folder / name).is_file():
            raise CheckpointError(f"{index}: the shard {name} is missing; the download is incomplete")
    return [folder / name for name in names]


def mapped_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory by name, mapped from their files: memory is used as they are read.

    Pickled files are read with ``weights_only=True``, so that nothing in them is run.

    Raises:
        CheckpointError: for a damaged file, or one that holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= _pickled(file) if file.suffix in PICKLED else _safetensors(file)
    return tensors


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be loaded: {error}; the file is damaged") from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        # Only the zip format, torch's since 1.6, can be mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except UnpicklingError as error:
        raise CheckpointError(f"{file}: contains more than weights, or is damaged; nothing in it was run") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: cannot be loaded: {error}; the file is damaged") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file}: not a state dict: expected a mapping from names to tensors")
    return {str(name): value.detach() for name, value in content.items()}
