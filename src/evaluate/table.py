"""One line per rollout: a CSV for a spreadsheet or pandas."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.evaluate.samples import Drawn

FIXED = ("model", "prompt_number", "sample", "kind", "prompt", "plan", "plan_ended", "plan_tokens", "file", "reward")
SCORE, DETAIL = "score/", "detail/"


def write_samples(path: Path, drawn: Mapping[str, Sequence[Drawn]]) -> None:
    """Write every rollout of every model; a cell is empty where a figure does not apply.

    Scores are under ``score/<expert>``, details under ``detail/<name>``, so names never clash with fixed columns.
    """
    rows = [_row(model, one) for model, ones in drawn.items() for one in ones]
    own = dict.fromkeys(name for row in rows for name in row if name not in FIXED)
    ordered = sorted(own, key=lambda name: not name.startswith(SCORE))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*FIXED, *ordered), restval="")
        writer.writeheader()
        writer.writerows(rows)


def _row(model: str, one: Drawn) -> dict[str, Any]:
    sample = one.sample
    return {
        "model": model,
        "prompt_number": sample.index,
        "sample": one.number,
        "kind": sample.kind,
        "prompt": sample.prompt,
        "plan": sample.plan,
        "plan_ended": int(sample.ended),
        "plan_tokens": one.plan_tokens,
        "file": one.file,
        "reward": "" if sample.reward is None else sample.reward,
        **{SCORE + name: value for name, value in sample.scores.items()},
        **{DETAIL + name: value for name, value in sample.details.items()},
    }
