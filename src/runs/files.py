"""The files of a run folder, read with their form checked.

A folder may be truncated by a full disk or a copy, come from another version, or not be a run at all. A reader gets
either what it expects or one message with the file, the problem and the fix.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError
from src.runs.folder import leads_out

if TYPE_CHECKING:
    from torch import Tensor

    from src.runs.folder import RunFolder

MADE_AGAIN = "delete it, and the run makes it again when it is resumed"
# Longest excerpt of a file in a message.
SHOWN = 60


class WrongForm(ValueError):
    """The content of a file has the wrong form; says what and where."""


def damaged(path: Path, problem: object, fix: str) -> UserError:
    """The message about a file that cannot be used."""
    return UserError(f"{path}: cannot be read as a run's {path.name} ({problem}); {fix}")


def read_text(path: Path, fix: str) -> str:
    """A text file of a run; raises UserError."""
    # A run folder may come from someone else: nothing outside it is read.
    if leads_out(path.parent, path) is not None:
        raise damaged(path, "it is a link out of the run's folder", "replace it with the file itself, or delete it")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise damaged(path, error.strerror, fix) from error
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start} is not text", fix) from error


def read_json(path: Path, check: Callable[[Any], None], fix: str) -> Any:
    """A JSON file of a run, looked at by `check`, which raises WrongForm; raises UserError."""
    text = read_text(path, fix)
    try:
        value = json.loads(text)
        check(value)
    except WrongForm as error:
        raise damaged(path, error, fix) from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not JSON: {error}" if text.strip() else "it is empty", fix) from error
    return value


def read_before(folder: RunFolder) -> dict[str, Any]:
    """The report before training: ``means`` of the figures, and the same ``by_kind`` of prompt; raises UserError."""

    def check(value: Any) -> None:
        figures(need(mapping(value), "means"), "means")
        for kind, means in mapping(need(value, "by_kind"), "by_kind").items():
            figures(means, f"by_kind.{kind}")

    report: dict[str, Any] = read_json(folder.before, check, MADE_AGAIN)
    return report


def read_summary(folder: RunFolder) -> dict[str, Any] | None:
    """The summary; None if there is none yet. Fields that this version reads are checked; raises UserError."""

    def check(value: Any) -> None:
        for name, known in mapping(value).items():
            if name == "finished" and not isinstance(known, bool):
                raise WrongForm("finished is not true or false")
            if name in ("steps", "seconds_total", "seconds_per_step", "peak_memory_gib") or name.endswith(
                ("_before", "_after")
            ):
                number(known, name, none=name != "steps")
        if not isinstance(value.get("steps", 0), int):
            raise WrongForm("steps is not a whole number")
        for kind, report in mapping(value.get("by_kind", {}), "by_kind").items():
            mapping(report, f"by_kind.{kind}")
            figures(need(report, "before", f"by_kind.{kind}"), f"by_kind.{kind}.before")
            if report.get("after") is not None:
                figures(report["after"], f"by_kind.{kind}.after")

    if not folder.summary.is_file():
        return None
    summary: dict[str, Any] = read_json(folder.summary, check, MADE_AGAIN)
    return summary


def read_metrics(path: Path) -> dict[int, dict[str, str]]:
    """The rows of metrics.csv by step, each figure as it stands there, without empty ones; raises UserError."""
    fix = "move it away: the figures until now are lost, a resumed run goes on without them"
    rows: dict[int, dict[str, str]] = {}
    if not read_text(path, fix):
        return rows
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "step" not in (reader.fieldnames or ()):
                raise WrongForm("its first line has no column step")
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise WrongForm(f"{where} has a different number of fields from the first")
                step = _whole_number(row.pop("step"), f"{where}, step")
                for name, value in row.items():
                    if value:
                        _float(value, f"{where}, {name}")
                rows[step] = {name: value for name, value in row.items() if value}
    except (WrongForm, csv.Error) as error:
        raise damaged(path, error, fix) from error
    return rows


def read_rollouts(path: Path) -> list[tuple[int, str]]:
    """The lines of rollouts.jsonl with their steps; a last one that a kill cut short is left out. Raises UserError."""
    fix = "move it away: the samples until now are lost, a resumed run goes on without them"
    lines = read_text(path, fix).split("\n")
    found = []
    for place, line in enumerate(lines):
        try:
            found.append((int(json.loads(line)["step"]), line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if place < len(lines) - 1:
                raise damaged(path, f"line {place + 1} is not a rollout: {line[:SHOWN]!r}", fix) from error
    return found


def read_weights(path: Path, fix: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises UserError for a file of another form."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise damaged(path, f"not a safetensors file: {error}", fix) from error


def weight_shapes(path: Path, fix: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes in a safetensors file, without reading the weights; raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise damaged(path, f"not a safetensors file: {error}", fix) from error


def mapping(value: Any, name: str = "") -> Mapping[str, Any]:
    """`value`, which must be a JSON object; raises WrongForm."""
    if not isinstance(value, Mapping):
        raise WrongForm(f"{name or 'it'} is not a JSON object")
    return value


def need(value: Mapping[str, Any], name: str, inside: str = "") -> Any:
    """The entry of this name; raises WrongForm where there is none."""
    if name not in value:
        raise WrongForm(f"{inside + '.' if inside else ''}{name} is missing")
    return value[name]


def number(value: Any, name: str, none: bool = False) -> None:
    """Raise WrongForm unless `value` is a number, or, with `none`, null."""
    if (value is None and none) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return
    raise WrongForm(f"{name} is not a number: {str(value)[:SHOWN]!r}")


def figures(value: Any, name: str) -> None:
    """Raise WrongForm unless `value` is an object of numbers."""
    for key, inner in mapping(value, name).items():
        number(inner, f"{name}.{key}")


def _whole_number(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise WrongForm(f"{where} is not a whole number: {text[:SHOWN]!r}") from None


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise WrongForm(f"{where} is not a number: {text[:SHOWN]!r}") from None
