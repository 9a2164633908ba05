"""Train: ``python -m src.train experiment=bicot_lora``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from src.cli import command as cli

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.runs.folder import RunFolder
    from src.runs.resume import Choice

STARTED = time.time()
EXIT_FAILED = 1


def train(config: DictConfig) -> int:
    """One training run; returns the exit code.

    0 done; 1 stopped by a fault that the message names (a reward or loss that is no number, want of memory, a full
    disk, a rank that died); 130 / 143 interrupted with everything saved. The watchdog ends the process with 124.
    """
    from src.runs.place import placed

    with placed(config, STARTED) as choice:
        return _train(config, choice)


def _train(config: DictConfig, choice: Choice) -> int:
    from src.config.masking import masked_text
    from src.rewards.base import RewardError
    from src.runs.resume import sound_checkpoint
    from src.runs.sound_files import CannotSave, DamagedFile
    from src.training.callbacks import StopRequested
    from src.training.collect import NonFiniteError
    from src.training.out_of_memory import SMALLER_ROLLOUT, DoesNotFit, memory_told
    from src.training.rank_watch import RankLost
    from src.training.session import Session

    folder = choice.folder
    checkpoint = None if choice.checkpoint is None else sound_checkpoint(folder, choice.checkpoint)
    summary = folder.read_summary()
    if summary is not None and summary.get("finished") and summary.get("steps", 0) >= config.trainer.max_steps:
        print(f"{folder.path}: the run is complete; raise trainer.max_steps to go on from it")
        print(closing_lines(summary, folder))
        return 0
    try:
        session = Session.build(config, folder, _started(), checkpoint)
        if session.is_global_zero:
            print(f"run folder: {folder.path}", flush=True)
        with memory_told(f"in an evaluation or between steps: {SMALLER_ROLLOUT}"):
            session.fit(checkpoint)
    except StopRequested as stop:
        print(f"{stop}; what was saved is in {folder.path}", file=sys.stderr)
        return stop.code
    except (NonFiniteError, RewardError, DoesNotFit, CannotSave, DamagedFile, RankLost) as error:
        print(masked_text(f"error: {error}; {folder.what_is_left()}"), file=sys.stderr, flush=True)
        session.end_others()
        return EXIT_FAILED
    if session.is_global_zero:
        print(closing_lines(session.report.summary, folder))
    return session.stop.code or 0


def _started() -> float:
    """When the run began: with the process, its imports included; a sweep's later jobs when their turn came."""
    from src.runs.launched import job_number

    return time.time() if job_number() else STARTED


def closing_lines(summary: dict[str, Any], folder: RunFolder) -> str:
    """What improved and where things are."""
    lines = [""]
    for name in ("reward", "all_correct"):
        before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
        if before is not None and after is not None:
            lines.append(f"{name:12} {before:.3f} -> {after:.3f}   (test prompts, best of validation)")
    for kind, figures in summary.get("by_kind", {}).items():
        before, after = figures["before"], figures.get("after") or {}
        if "all_correct" in before and "all_correct" in after:
            lines.append(f"  {kind:12} {before['all_correct']:.3f} -> {after['all_correct']:.3f}   all_correct")
    lines += [
        f"{summary['steps']} steps, {summary.get('seconds_per_step') or 0:.2f} s a step,"
        f" {summary.get('seconds_total') or 0:.0f} s",
        f"adapter: {folder.adapter}",
        f"samples: {folder.samples('before')}, {folder.samples('after')}",
        f"summary: {folder.summary}",
    ]
    return "\n".join(lines)


COMMAND = cli.Command(
    name="train",
    about="Train a policy with BiCoT-GRPO: groups of plans and images, rewarded by experts, one GRPO loss over both.",
    examples=(
        "experiment=bicot_lora",
        "experiment=bicot_lora run.seed=1 trainer.max_steps=60 logger=csv",
        "experiment=bicot_lora -m algorithm.beta=0.01,0.02",
    ),
    task=train,
    keys=(
        "run.dir run.seed run.name             where the run goes, what its noise is keyed by",
        "model.path model.adapter              checkpoint directory; adapter to go on from",
        "rollout.group_size rollout.prompts_per_step rollout.guidance_scale rollout.max_plan_tokens",
        "algorithm.beta algorithm.kl algorithm.logp=guided|conditional algorithm.updates_per_rollout",
        "optim.lr optim.warmup_steps optim.schedule optim.grad_clip optim.microbatch",
        "trainer.max_steps trainer.devices trainer.precision   kernels=auto|triton|torch",
        "resume=auto|PATH                      go on from a checkpoint; resume.allow_changes=true with other settings",
    ),
    sweeps=True,
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
