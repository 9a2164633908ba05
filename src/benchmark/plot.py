"""The benchmark as one picture: milliseconds per token step over the number of images, and a step by phase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.benchmark.rows import Row


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write a PNG; panels without figures are left out, and no file without any."""
    panels = [
        draw
        for draw, needed in ((_scaling, "scaling"), (_phases, "train_step"), (_ratios, "peers"))
        if _of(rows, needed)
    ]
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 4), squeeze=False, layout="constrained")
    for draw, axis in zip(panels, axes[0], strict=True):
        draw(axis, rows)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _of(rows: Sequence[Row], section: str) -> list[Row]:
    return [row for row in rows if row.section == section and row.seconds]


def _scaling(axis: Any, rows: Sequence[Row]) -> None:
    shown = _of(rows, "scaling")
    for size in dict.fromkeys(row.size for row in shown):
        mine = sorted((row for row in shown if row.size == size), key=lambda row: row.images)
        numbers = [row.images for row in mine]
        axis.plot(numbers, [row.ms_per_token for row in mine], "o-", label=f"{size}, measured")
        axis.plot(numbers, [row.limit_ms for row in mine], ":", label=f"{size}, bytes / bandwidth")
    axis.set(xlabel="images at once", ylabel="ms a token step", xscale="log", yscale="log", title="Image rollout")
    numbers = sorted({row.images for row in shown})
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.minorticks_off()
    axis.legend(fontsize=7)


def _phases(axis: Any, rows: Sequence[Row]) -> None:
    shown = [row for row in _of(rows, "train_step") if not row.what.startswith("whole")]
    labels = list(dict.fromkeys((row.size, row.what.rpartition(", ")[2]) for row in shown))
    for phase in dict.fromkeys(row.what.rpartition(", ")[0] for row in shown):
        values = [
            next((row.seconds for row in shown if (row.size, row.what) == (size, f"{phase}, {kind}")), 0.0)
            for size, kind in labels
        ]
        under = [
            sum(bar.get_height() for bar in axis.patches if round(bar.get_x() + bar.get_width() / 2) == i)
            for i in range(len(labels))
        ]
        axis.bar(range(len(labels)), values, bottom=under, label=phase)
    axis.set_xticks(range(len(labels)), [f"{size}\n{kind}" for size, kind in labels])
    axis.set(ylabel="seconds", title="A training step by phase", xlim=(-0.6, len(labels) + 0.6))
    axis.legend(fontsize=7)


def _ratios(axis: Any, rows: Sequence[Row]) -> None:
    shown = _of(rows, "peers")
    names = [f"{row.size}: {row.what}" for row in shown]
    axis.barh(range(len(shown)), [row.images_per_second for row in shown])
    axis.set_yticks(range(len(shown)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="images a second", title="Image rollout beside the public ways")
