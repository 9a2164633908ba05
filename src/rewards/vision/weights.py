"""Loading an expert's published weights: dtypes, files, and that every key and shape fits exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The files needed from a model directory of the hub; copies for other libraries are not fetched.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class WeightsMismatch(ValueError):
    """Weights that do not fit an expert; names the file and the difference."""


def as_dtype(name: str) -> torch.dtype:
    """The torch dtype of a config's `dtype`; ValueError for one that is not in `DTYPES`."""
    if name not in DTYPES:
        raise ValueError(f"dtype={name}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote to `file`: tensors in plain containers, on the CPU; no code in it is run.

    Raises:
        WeightsMismatch: if the file is damaged, not a checkpoint, or has other content.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsMismatch(f"{file}: cannot be read as a checkpoint of tensors ({error})") from error
    if not isinstance(content, dict):
        raise WeightsMismatch(f"{file}: contains a {type(content).__name__}, expected a dict of tensors")
    return content


def load_exactly(kind: Any, config: Any, state: Mapping[str, Tensor], dtype: torch.dtype, source: Path) -> Any:
    """A transformers model of class `kind` whose weights are `state`, all of them and nothing else.

    state: by transformers' published names, any dtype; taken over in `dtype`.

    Raises:
        WeightsMismatch: naming `source` and the keys that are missing, left over, or of another shape.
    """
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(state),
        dtype=dtype,
        ignore_mismatched_sizes=True,  # they are refused below, all at once
        output_loading_info=True,
    )
    check_fit(source, report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    return model


def load_complete(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A transformers model of class `kind` from its directory, in `dtype`.

    Raises:
        WeightsMismatch: naming the missing weights, which transformers would initialise at random.
    """
    model, report = kind.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    check_fit(folder, report["missing_keys"])
    return model


def check_shapes(source: Path, state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raise WeightsMismatch unless `state` has exactly the names and shapes of `expected`."""
    shared = state.keys() & expected.keys()
    other = [(name, state[name].shape, expected[name]) for name in shared if state[name].shape != expected[name]]
    check_fit(source, expected.keys() - shared, state.keys() - shared, other)


def check_fit(
    source: Path, missing: Iterable[str], unexpected: Iterable[str] = (), mismatched: Iterable[Any] = ()
) -> None:
    """Raise WeightsMismatch unless all three are empty. mismatched: names, or (name, found, expected shape)."""
    shapes = [f"{m[0]} {tuple(m[1])} instead of {tuple(m[2])}" if isinstance(m, tuple) else m for m in mismatched]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", sorted(missing)),
            ("left over", sorted(unexpected)),
            ("of another shape", sorted(shapes)),
        )
        if names
    ]
    if problems:
        raise WeightsMismatch(f"{source}: these weights do not fit ({'; '.join(problems)})")
