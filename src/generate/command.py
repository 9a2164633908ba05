"""Generate: ``python -m src.generate prompts="a red circle left of a blue square" adapter=DIR n=4 out=DIR``.

Plans and paints n pictures per prompt, with scores if an expert can judge the prompt. The
folder `out` gets images/, grid.png and samples.jsonl. In float32 the same seed and prompt give the same picture,
whatever other prompts are asked for with it; in bf16 with batch_size=1 (docs/DECISIONS.md). The PNG files record how
they were made. With best_of=8 each picture is the best of 8 candidates.

    python -m src.generate prompts="a red circle left of a blue square" run=runs/bicot_lora out=pictures
    python -m src.generate prompts="two green squares" prompts="a yellow circle" n=8 seed=1
    python -m src.generate prompts="two green squares" run=bicot_lora best_of=8
    python -m src.generate prompts_file=src/shapes/prompts/test.jsonl adapter=runs/bicot_lora/adapter n=1
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from src.cli import command as cli
from src.cli.prompt_source import PromptSource, read_prompts, take_out
from src.generate.best_of import BestOf, check_best_of
from src.images import save_png
from src.policies.prompt_checks import check_metadata, check_prompts, warn_of
from src.rewards.entries import Entry, scores
from src.rollout.noise import rollout_key
from src.trained import choose_model, load_policy, settings_of

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from src.policies.base import Policy
    from src.rewards.ensemble import RewardEnsemble
    from src.rollout.levels import RolloutSettings
    from src.values import PromptRecord

WRITTEN = ("images", "grid.png", "samples.jsonl")
TILES = 96  # of grid.png at most


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to paint: of which prompt (`number` is its place), which of its pictures, which candidate for it."""

    record: PromptRecord
    number: int
    rollout: int
    candidate: int = 0


def generate(config: DictConfig, source: PromptSource) -> int:
    """One generation; returns the exit code. Input errors are reported before any weight is loaded."""
    records = read_prompts(source)
    from src.runs.output_folder import check_free, new_folder, written_whole

    out = None if config.out is None else Path(config.out).expanduser()
    if out is not None:
        check_free(out, config.overwrite, WRITTEN)
    check_best_of(config.best_of, config.best_of_by, config.rewards.experts)
    chosen = choose_model(config)
    warn_of(check_prompts(chosen["model"], chosen["sampling"]["max_plan_tokens"], records))
    from src import build
    from src.policies.load import quiet

    quiet()
    rewards = build.build_rewards(config).to(build.device())
    check_metadata(rewards, records)
    sign = 1.0 if config.best_of_by is None else rewards.facts[config.best_of_by].sign
    best_of = BestOf(config.best_of, config.best_of_by, sign)
    policy = load_policy(chosen)
    facts = {
        "model": chosen["model"].get("path"),
        "adapter": chosen["model"].get("adapter"),
        "run": config.run,
        "seed": config.seed,
        "sampling": chosen["sampling"],
    }
    out = out or new_folder("outputs/generated")
    with written_whole(out, config.overwrite) as folder:
        (folder / "images").mkdir()
        jobs = [
            Job(record, index, rollout, candidate)
            for index, record in enumerate(records)
            for rollout in range(config.n)
            for candidate in range(best_of.of)
        ]
        painted = all_pictures(policy, rewards, jobs, config, settings_of(chosen["sampling"]))
        entries, tiles = [], []
        for entry, pixels in best_of.kept(painted):
            entries.append(entry | facts)
            save_png(folder / entry["file"], pixels, entries[-1])
            tiles.append(pixels)
        write_grid(folder / "grid.png", entries[:TILES], tiles[:TILES], len(entries))
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    print(closing_lines(entries, out))
    return 0


def all_pictures(
    policy: Policy, rewards: RewardEnsemble, jobs: Sequence[Job], config: DictConfig, settings: RolloutSettings
) -> Iterator[tuple[Entry, Tensor]]:
    """`pictures` of all jobs, ``batch_size`` at a time, under a progress bar on standard error."""
    from tqdm import tqdm

    hidden = None if config.progress_bar else True  # None: where standard error is no terminal
    with tqdm(total=len(jobs), unit="picture", disable=hidden) as bar:
        for start in range(0, len(jobs), config.batch_size):
            part = jobs[start : start + config.batch_size]
            yield from pictures(policy, rewards, part, config.seed, settings)
            bar.update(len(part))


def pictures(
    policy: Policy,
    rewards: RewardEnsemble,
    jobs: Sequence[Job],
    seed: int,
    settings: RolloutSettings,
) -> Iterator[tuple[Entry, Tensor]]:
    """For each job its line of samples.jsonl and its pixels (3, H, W)."""
    import torch

    from src.rollout.levels import roll_out

    keys = [rollout_key(seed, job.record.prompt, job.rollout, job.candidate) for job in jobs]
    with torch.no_grad():
        rolled = roll_out(policy, policy.decoder(), [job.record.prompt for job in jobs], keys, settings)
        judged = scores(rewards, rolled.pixels, [job.record for job in jobs])
    for row, job in enumerate(jobs):
        entry = {
            "prompt": job.record.prompt,
            "plan": rolled.plans[row],
            "plan_ended": bool(rolled.ended[row]),
            "rollout": job.rollout,
            "file": f"images/{job.number:04d}_{job.rollout:02d}.png",
            **judged[row],
        }
        yield entry, rolled.pixels[row].cpu()


def write_grid(path: Path, entries: Sequence[Entry], tiles: Sequence[Tensor], total: int) -> None:
    """A sheet of the first pictures with prompt, plan and score."""
    import torch

    from src.training.pictures import sheet

    captions = [
        f"rollout {entry['rollout']}"
        + (f"   reward {entry['reward']:.2f}" if "reward" in entry else "")
        + (f"   best of {entry['best_of']['of']}" if "best_of" in entry else "")
        for entry in entries
    ]
    title = f"{total} pictures, seed {entries[0]['seed']}" + (
        f" (the first {len(tiles)})" if total > len(tiles) else ""
    )
    prompts, plans = [entry["prompt"] for entry in entries], [entry["plan"] for entry in entries]
    sheet(path, title, prompts, plans, torch.stack(list(tiles)), captions)


def closing_lines(entries: Sequence[Entry], out: Path) -> str:
    """Where things are, and the mean score if there is one."""
    rewards = [entry["reward"] for entry in entries if "reward" in entry]
    lines = [f"{len(entries)} pictures: {out / 'images'}", f"grid: {out / 'grid.png'}"]
    lines.append(f"prompts, plans, scores: {out / 'samples.jsonl'}")
    if rewards:
        lines.append(f"mean reward {sum(rewards) / len(rewards):.3f} over {len(rewards)} pictures")
    else:
        lines.append(
            "no scores: no expert has anything to go by in these prompts (a .jsonl file can say what is asked)"
        )
    return "\n".join(lines)


COMMAND = cli.Command(
    name="generate",
    about="Plan and paint pictures from prompts: images, plans, scores where an expert applies, a grid, a JSONL.",
    examples=(
        'prompts="a red circle left of a blue square" run=runs/bicot_lora out=pictures',
        'prompts="two green squares" prompts="a yellow circle" adapter=runs/bicot_lora/adapter n=8 seed=1',
        'prompts="two green squares" run=bicot_lora best_of=8',
        "prompts_file=src/shapes/prompts/test.jsonl run=runs/bicot_lora n=1",
    ),
    task=partial(generate, source=PromptSource()),
    config="generate",
    groups=("model", "rewards"),
    keys=(
        'prompts="..."                     as it is, again for several; prompts=- reads standard input',
        "prompts_file=PATH                 .txt with one a line, or .jsonl records",
        "run=NAME | run=DIR | adapter=DIR  what was trained; neither: the base model",
        "best_of=8 best_of_by=EXPERT       the best of 8 candidates a picture; null: by the total of all experts",
        "n seed temperature guidance_scale max_plan_tokens batch_size progress_bar",
        "out=DIR                           where to; overwrite=true replaces what is there",
    ),
)


def main() -> int:
    """Entry point."""
    source, arguments = take_out(sys.argv[1:])
    return cli.run(replace(COMMAND, task=partial(generate, source=source)), arguments)


if __name__ == "__main__":
    sys.exit(main())
