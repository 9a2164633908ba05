"""Prompts from a data set by name: the Hugging Face hub's, its local cache's, or a folder `datasets` can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.data.lines import BadLines
from src.data.records import FIELDS, PromptDataError, parse_record
from src.values import PromptRecord

INSTALL = 'pip install -e ".[datasets]"'


def read_dataset(
    name: str,
    split: str,
    configuration: str | None = None,
    columns: Mapping[str, str] | None = None,
    bad: BadLines | None = None,
) -> list[PromptRecord]:
    """The records of one split of a data set, in its order.

    columns: field of a record -> column of the data set, such as ``{"prompt": "caption"}``; without it every
    column that has a field's name is taken, and columns of other names are left alone. No code of the data set
    is run: the library stopped doing so in version 4, and it is never enabled here.

    Raises PromptDataError: where the library is not installed, the data set cannot be loaded, a column is missing,
    and, naming row and field, for the first row that is not a record, unless `bad` skips those.
    """
    bad = bad or BadLines()
    rows = _load(name, split, configuration)
    available = list(rows.column_names)
    chosen = dict(columns) if columns else {field: field for field in FIELDS if field in available}
    _check_columns(name, chosen, available)
    numbered = (
        (row, f"{name}[{split}]:{number}")
        for number, row in enumerate(rows.select_columns(list(dict.fromkeys(chosen.values()))))
    )
    records = bad.good(numbered, lambda row: parse_record(_fields(row[0], chosen), row[1]))
    if not records:
        raise bad.all_bad(f"{name}[{split}]", "rows with a prompt")
    return records


def _load(name: str, split: str, configuration: str | None) -> Any:
    try:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ImportError as error:
        raise PromptDataError(f"data.dataset={name}: needs the package datasets ({INSTALL})") from error
    disable_progress_bar()
    try:
        return load_dataset(name, configuration, split=split)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise PromptDataError(
            f"data.dataset={name}: its split {split!r} cannot be loaded ({type(error).__name__}: {reason}); check"
            " data.dataset, data.dataset_config and data.split, or download it on a machine with a network"
        ) from error


def _check_columns(name: str, chosen: Mapping[str, str], available: list[str]) -> None:
    unknown = sorted(set(chosen) - set(FIELDS))
    if unknown:
        raise PromptDataError(f"data.columns.{unknown[0]}: no field of a prompt; known are {', '.join(FIELDS)}")
    for field, column in chosen.items():
        if column not in available:
            raise PromptDataError(
                f"data.columns.{field}={column}: {name} has no such column; it has {', '.join(available)}"
            )
    if "prompt" not in chosen:
        raise PromptDataError(
            f"data.dataset={name}: no column 'prompt' among {', '.join(available)}; name it: data.columns.prompt=..."
        )


def _fields(row: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """A row by a record's field names; what is None there is absent, as in a table with empty cells."""
    return {field: row[column] for field, column in chosen.items() if row[column] is not None}
