"""Run folders as training leaves them, with figures of the tests' choosing."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from src.cli.compose import compose
from src.runs.folder import RunFolder, write_json, write_text


def write_run(
    folder: Path,
    rewards: Mapping[int, float],
    *overrides: str,
    test: Sequence[float] | None = None,
    finished: bool = True,
) -> RunFolder:
    """rewards: validation/reward by step. test: one score a test prompt. finished: with a summary and an adapter."""
    run = RunFolder(folder)
    config = compose(["experiment=bicot_lora", f"run.dir={folder}", *overrides])
    write_text(run.config, OmegaConf.to_yaml(config, resolve=True))
    with run.metrics.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "validation/reward", "seconds", "lr"], restval="")
        writer.writeheader()
        writer.writerows(
            {"step": step, "validation/reward": reward, "seconds": 2.0 if step else "", "lr": 0.1 if step else ""}
            for step, reward in rewards.items()
        )
    if finished:
        costs = {"seconds_per_step": 1.5, "seconds_total": 30.0, "peak_memory_gib": 1.25}
        write_json(run.summary, {"finished": True, "steps": max(rewards), **costs, "git_commit": "c" * 40})
        write_text(run.adapter / "adapter_config.json", "{}")
    if test is not None:
        lines = [
            {"index": i, "kind": "count", "prompt": f"p{i}", "plan": "", "ended": True, "reward": score,
             "scores": {"shapes": score}, "details": {}}
            for i, score in enumerate(test)
        ]  # fmt: skip
        write_text(run.test_samples("after"), "".join(json.dumps(line) + "\n" for line in lines))
    return run
