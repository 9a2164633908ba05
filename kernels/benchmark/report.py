"""The bars, the CSV files and the plot."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from kernels.benchmark.accuracy import K3Error

OP1, OP2, OP3 = "ours: op 1", "ours: op 2, chunked", "ours: op 3, one pass"
STORED = "stored logits + op 1"
# Where the bars are, as (tokens, hidden, vocabulary).
OP1_BAR_SHAPES = ((4608, 0, 16_384), (4096, 0, 102_400))
HEAD_BAR_SHAPE = (4608, 4096, 16_384)


@dataclass(frozen=True)
class Result:
    """One contestant at one shape with a cold or a hot cache; figures are None where it is absent or failed.

    moved: the least bytes the work has to move; flop: those of its matrix products. copy_share and
    matrix_share relate them to what the card itself was measured to do in the same run. times_ours: the median
    over that of the fastest of ours at the same shape and cache; above 1, ours is faster.
    """

    section: str
    tokens: int
    hidden: int
    vocabulary: int
    contestant: str
    cache: str
    status: str
    note: str = ""
    same_work: bool = True
    stores_logits: bool = True
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    graph: bool | None = None
    extra_bytes: int | None = None
    copy_share: float | None = None
    matrix_share: float | None = None
    times_ours: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.tokens, self.hidden, self.vocabulary


@dataclass(frozen=True)
class Bar:
    """A promise and what became of it: met, not met, or not met because a peer was absent."""

    name: str
    wanted: str
    found: str
    met: bool


def beside_ours(results: Sequence[Result]) -> list[Result]:
    """The same results, of one shape and cache, with `times_ours`."""
    best = _fastest(results)
    if best is None or not best.median_ms:
        return list(results)
    return [r if r.median_ms is None else replace(r, times_ours=r.median_ms / best.median_ms) for r in results]


def _fastest(results: Sequence[Result]) -> Result | None:
    """The fastest of ours among the results of one shape."""
    ours = [r for r in results if r.contestant in (OP1, OP2, OP3) and r.median_ms is not None]
    return min(ours, key=lambda r: r.median_ms or 0.0, default=None)


def bars(results: Sequence[Result], accuracy: Sequence[K3Error]) -> list[Bar]:
    """Every bar of the project; one whose figures are missing counts as not met."""
    cold = [r for r in results if r.cache == "cold"]
    made = [bar for shape in OP1_BAR_SHAPES for bar in _op1_bars([r for r in cold if r.shape == shape], shape)]
    made += _head_bars([r for r in cold if r.shape == HEAD_BAR_SHAPE])
    better = [row for row in accuracy if row.ours < row.torch_bfloat16]
    made.append(
        Bar(
            "mean k3 of small differences",
            "nearer to float64 than bf16 log_softmax at every size",
            f"at {len(better)} of {len(accuracy)} sizes",
            bool(accuracy) and len(better) == len(accuracy),
        )
    )
    return made


def _op1_bars(results: Sequence[Result], shape: tuple[int, int, int]) -> list[Bar]:
    where = f"op 1 at {shape[0]} x {shape[2]}"
    ours = _find(results, OP1)
    share = ours.copy_share if ours else None
    made = [Bar(f"{where}: share of the copy bandwidth", "at least 0.85", _shown(share), (share or 0.0) >= 0.85)]
    peers = [r for r in results if r.contestant != OP1]
    made += [_faster(where, ours, peer, 1.0) for peer in peers]
    if not peers:
        made.append(Bar(f"{where}: faster than every peer", "more than 1.00 times", "not measured", False))
    return made


def _head_bars(results: Sequence[Result]) -> list[Bar]:
    where = "ops 2/3 at " + " x ".join(map(str, HEAD_BAR_SHAPE))
    ours = _fastest(results)
    rivals = [r for r in results if r.contestant not in (OP2, OP3, STORED) and not r.stores_logits]
    present = [r for r in rivals if r.median_ms and r.same_work]
    best = min(present, key=lambda r: r.median_ms or 0.0) if present else None
    made = [_faster(f"{where}: best that stores no logits", ours, best, 1.3)]
    # Each peer alone, too: one that is absent or failed is not beaten.
    made += [_faster(where, ours, rival, 1.3 if rival.same_work else 1.0) for rival in rivals]
    stored = _find(results, STORED)
    times = ours.median_ms / stored.median_ms if ours and stored and ours.median_ms and stored.median_ms else None
    made.append(
        Bar(
            f"{where}: time beside stored logits",
            "at most 1.10 times",
            _shown(times),
            times is not None and times <= 1.1,
        )
    )
    share = None
    if ours and stored and ours.extra_bytes is not None and stored.extra_bytes:
        share = ours.extra_bytes / stored.extra_bytes
    made.append(
        Bar(f"{where}: memory beside stored logits", "under 0.10", _shown(share), share is not None and share < 0.1)
    )
    return made


def _faster(where: str, ours: Result | None, peer: Result | None, factor: float) -> Bar:
    label = "" if peer is None or peer.same_work else " (labelled cross-entropy only)"
    name = f"{where}: faster than {peer.contestant if peer else 'the best peer'}{label}"
    wanted = f"{'more than' if factor == 1.0 else 'at least'} {factor:.2f} times"
    if peer is None or peer.median_ms is None:
        return Bar(name, wanted, peer.status if peer else "not measured", False)
    if ours is None or ours.median_ms is None:
        return Bar(name, wanted, "ours is absent", False)
    ratio = peer.median_ms / ours.median_ms
    return Bar(name, wanted, _shown(ratio), ratio > factor or (factor != 1.0 and ratio == factor))


def _find(results: Sequence[Result], contestant: str) -> Result | None:
    return next((r for r in results if r.contestant == contestant), None)


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def versions(device: torch.device) -> dict[str, str]:
    """Card, driver side and package versions, and the commit: what every line of a CSV carries."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    packages = ("torch", "triton", "liger-kernel", "trl", "quack-kernels", "cut-cross-entropy")
    found = {name: _version(name) for name in packages}
    return {"card": card, "cuda": str(torch.version.cuda), **found, "commit": _commit()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """The checkout's commit, "-dirty" where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def taken(folder: Path, own: Sequence[str], overwrite: bool) -> str | None:
    """Why nothing may be written into `folder`, for a person; None where it is new, empty, or holds what may go.

    own: the names that are written. Other files are somebody else's, whatever `overwrite` says.
    """
    if folder.exists() and not folder.is_dir():
        return f"--out {folder}: is a file; give a folder"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name not in own]
    if others:
        return f"--out {folder}: holds {others[0]}, which no benchmark wrote; give another folder"
    if names and not overwrite:
        return f"--out {folder}: holds {names[0]} already; give another folder, or add --overwrite"
    return None


def write_csv(path: Path, rows: Iterable[dict[str, object]], facts: dict[str, str]) -> None:
    """Rows of one kind, each with the facts of the run."""
    rows = [{**row, **facts} for row in rows]
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRITTEN = ("times.csv", "accuracy.csv", "bars.csv", "times.png")
DECODING = "decoding.csv"  # of `kernels.benchmark.decoding`; one folder may hold both


def write(
    folder: Path, results: Sequence[Result], accuracy: Sequence[K3Error], judged: Sequence[Bar], facts: dict[str, str]
) -> list[Path]:
    """times.csv, accuracy.csv, bars.csv and times.png in `folder`; returns what was written."""
    write_csv(folder / "times.csv", (asdict(r) for r in results), facts)
    write_csv(folder / "accuracy.csv", (row._asdict() for row in accuracy), facts)
    write_csv(folder / "bars.csv", (asdict(bar) for bar in judged), facts)
    plot(folder / "times.png", results, facts)
    return [folder / name for name in WRITTEN]


def plot(path: Path, results: Sequence[Result], facts: dict[str, str]) -> None:
    """Median times with p10 to p90, cold cache, one panel a shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [r for r in results if r.cache == "cold" and r.median_ms is not None]
    shapes = sorted({r.shape for r in shown}, key=lambda s: (s[1] > 0, s))
    figure, panels = pyplot.subplots(max(1, len(shapes)), 1, figsize=(8, 1 + 2.2 * max(1, len(shapes))), squeeze=False)
    for panel, shape in zip(panels[:, 0], shapes, strict=False):
        rows = [r for r in shown if r.shape == shape]
        medians = [r.median_ms or 0.0 for r in rows]
        spans = [
            [max(0.0, m - (r.p10_ms or m)) for r, m in zip(rows, medians, strict=True)],
            [max(0.0, (r.p90_ms or m) - m) for r, m in zip(rows, medians, strict=True)],
        ]
        colours = ["tab:orange" if r.contestant.startswith("ours") else "tab:blue" for r in rows]
        panel.barh([r.contestant for r in rows], medians, xerr=spans, color=colours)
        panel.invert_yaxis()
        panel.set_xlabel("ms, forward and backward (median, p10 to p90)")
        panel.set_title(" x ".join(str(size) for size in (shape[0], shape[1], shape[2]) if size))
    figure.suptitle(f"{facts['card']}, torch {facts['torch']}, triton {facts['triton']}, {facts['commit']}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
