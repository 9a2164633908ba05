"""The benchmark's results: one row per figure, the same columns everywhere, so one CSV holds all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# Bytes a second that the limits are counted with on an H200.
H200_BANDWIDTH = 4.3e12


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    section: image_step | scaling | ablation | peers | train_step; size: tiny | 1b | 7b; images: N; what: whose
    figure, or the phase. seconds: median of the rounds, with low and high; ms_per_token: of one image-token step of
    all images; images_per_second; limit_ms: least time of that step, weight and cache bytes over the bandwidth
    `limit_from`; bandwidth_share: of the measured copy bandwidth, that the bytes of `limit_ms` make in `seconds`.
    ours_is: how many times faster ours is in the same run. status: ok, or failed with its reason in `note`.
    """

    section: str
    size: str
    images: int
    what: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    ms_per_token: float | None = None
    images_per_second: float | None = None
    limit_ms: float | None = None
    bandwidth_share: float | None = None
    ours_is: float | None = None
    peak_gib: float | None = None
    status: str = "ok"
    note: str = ""


def failure(section: str, size: str, images: int, what: str, error: Exception) -> Row:
    """The row of something that raised."""
    reason = next(iter(str(error).strip().splitlines()), "")
    return Row(section, size, images, what, status="failed", note=f"{type(error).__name__}: {reason}"[:200])


@dataclass(frozen=True, slots=True)
class Bar:
    """A target and its result; `met` is None if it does not apply to this hardware or model."""

    name: str
    wanted: str
    found: str
    met: bool | None


def write_csv(path: Path, rows: Iterable[Row], facts: Mapping[str, str]) -> None:
    """All rows, each with the hardware, versions and commit."""
    names = [item.name for item in fields(Row)] + list(facts)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**{k: _short(v) for k, v in asdict(row).items()}, **facts} for row in rows)


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else value


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    head = ("section", "size", "images", "what", "seconds", "ms/token", "images/s", "limit ms", "of copy", "ours is")

    def cells(row: Row) -> tuple[str, ...]:
        return (
            row.section,
            row.size,
            str(row.images),
            row.what,
            _cell(row.seconds, ".3f") if row.status == "ok" else row.status,
            _cell(row.ms_per_token, ".3f"),
            _cell(row.images_per_second, ".2f"),
            _cell(row.limit_ms, ".2f"),
            _cell(row.bandwidth_share, ".0%"),
            _cell(row.ours_is, ".2f") + ("x" if row.ours_is is not None else ""),
        )

    lines = [head, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [f"  {row.size} {row.what}: {row.note}" for row in rows if row.note]
    return "\n".join([*text, *notes])


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# (size, images) -> milliseconds an image-token step may take on an H200.
STEP_BARS = {("7b", 16): 7.0, ("7b", 64): 14.0, ("1b", 16): 2.4}
PEER_BARS = {"T2I-R1's loop": 4.0, "transformers generate": 1.5}
TRAIN_STEP_SECONDS, TRAIN_STEP_GIB = 9.0, 40.0
OURS, TRAIN_STEP = "ours", "whole step, conditional"


def bars(rows: Sequence[Row], card: str) -> list[Bar]:
    """Every bar whose figure is there; times count on an H200 only, ratios everywhere but on the tiny model."""
    on_h200 = "H200" in card
    made: list[Bar] = []
    for row in rows:
        if row.section == "image_step" and (row.size, row.images) in STEP_BARS:
            limit = STEP_BARS[row.size, row.images]
            found = _cell(row.ms_per_token, ".2f") + " ms"
            met = row.ms_per_token is not None and row.ms_per_token <= limit
            made.append(
                Bar(f"{row.size}, {row.images} images, a token step", f"<= {limit} ms", found, met if on_h200 else None)
            )
        if row.section == "train_step" and row.what == TRAIN_STEP and row.size == "7b":
            time, peak = row.seconds or float("inf"), row.peak_gib or float("inf")
            fast = time <= TRAIN_STEP_SECONDS if on_h200 else None
            made.append(Bar("7b LoRA step", f"<= {TRAIN_STEP_SECONDS} s", f"{time:.2f} s", fast))
            made.append(
                Bar("7b LoRA step, peak", f"<= {TRAIN_STEP_GIB} GiB", f"{peak:.1f} GiB", peak <= TRAIN_STEP_GIB)
            )
    return made + _peer_bars(rows)


def _peer_bars(rows: Sequence[Row]) -> list[Bar]:
    """Ours against the best form of each peer, by model size."""
    made = []
    peers = [row for row in rows if row.section == "peers" and row.what != OURS]
    for size in dict.fromkeys(row.size for row in peers):
        for name, wanted in PEER_BARS.items():
            forms = [row for row in peers if row.size == size and row.what.startswith(name)]
            ratios = [row.ours_is for row in forms if row.ours_is is not None]
            found = f"{min(ratios):.2f}x" if ratios else "no form of it ran"
            met = None if size == "tiny" else bool(ratios) and min(ratios) >= wanted
            made.append(Bar(f"{size}, images/s against {name}", f">= {wanted}x", found, met))
    return made
