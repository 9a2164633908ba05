"""Generate: ``python -m src.generate prompts="a red circle left of a blue square" adapter=DIR n=4 out=DIR``.

Plans and paints n pictures a prompt, with scores where an expert has something to say about the prompt. The
folder `out` gets images/, grid.png and samples.jsonl. In float32 the same seed and prompt give the same picture,
whatever other prompts are asked for with it; in bf16 with batch_size=1 (docs/ARCHITECTURE.md). The PNG files hold what
they were made of and how. With best_of=8 each picture is the best of 8 candidates.

    python -m src.generate prompts="a red circle left of a blue square" run=runs/bicot_lora out=pictures
    python -m src.generate prompts="two green squares" prompts="a yellow circle" n=8 seed=1
    python -m src.generate prompts="two green squares" run=bicot_lora best_of=8
    python -m src.generate prompts_file=src/shapes/prompts/test.jsonl adapter=runs/bicot_lora/adapter n=1
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import cli
from src.best_of import BestOf, Entry, check_best_of
from src.config import UserError
from src.png_metadata import save_png
from src.prompt_checks import check_metadata, check_prompts, warn_of
from src.prompt_source import PromptSource, read_prompts, take_out

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
    """One generation; returns the exit code. What is wrong with the input shows before any weight is loaded."""
    records = read_prompts(source)
    from src.output_folder import check_free, new_folder, written_whole

    out = None if config.out is None else Path(config.out).expanduser()
    if out is not None:
        check_free(out, config.overwrite, WRITTEN)
    check_best_of(config.best_of, config.best_of_by, config.rewards.experts)
    chosen = choose_model(config)
    warn_of(check_prompts(chosen["model"], chosen["sampling"]["max_plan_tokens"], records))
    from src import build
    from src.export import quiet

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


def choose_model(config: DictConfig) -> dict[str, Any]:
    """What to load and how to sample: ``model`` (its config, built with the code of ``plugins``), ``weights`` (of full
    fine-tuning) and ``sampling``.

    A run brings its model and its sampling; what the command line says about sampling comes before both.

    Raises:
        UserError: for a run or adapter that is not there, or a run whose config names code that is not allowed.
    """
    from src.allowed_targets import check_part
    from src.build import plain

    if config.run is not None and config.adapter is not None:
        raise UserError("run, adapter: give one of the two; a run brings its own adapter")
    model, sampling, weights = plain(config.model), dict(plain(config.sampling)), None
    if config.run is not None:
        from src.export import find_run, run_config, source_of_run

        run = find_run(config.run)
        source, trained = source_of_run(run, config.base), run_config(run)
        model, weights = {**trained["model"], "path": str(source.base)}, source.weights
        if source.adapter is not None:
            model["adapter"] = str(source.adapter)
        sampling |= sampling_of_run(trained, run / "config.yaml")
    elif config.adapter is not None:
        from src.export import checkpoint_of_model, locate_source

        source = locate_source(None, config.adapter, config.base or checkpoint_of_model(model))
        model |= {"path": str(source.base), "adapter": str(source.adapter)}
    elif config.base is not None:
        model["path"] = config.base
    plugins = list(config.plugins)
    # A run's config is a file, maybe somebody else's.
    check_part(model, "model", plugins, "model")
    sampling |= sampling_asked_for(config)
    check_sampling(sampling)
    return {"model": model, "weights": weights, "sampling": sampling, "plugins": plugins}


def sampling_asked_for(config: DictConfig) -> dict[str, Any]:
    """What the command line says about sampling; it comes before a run's and a model's own."""
    asked = {key: config[key] for key in ("guidance_scale", "max_plan_tokens") if config[key] is not None}
    for key in ("temperature", "top_k", "top_p"):
        if config[key] is not None:
            asked |= {f"plan_{key}": config[key], f"image_{key}": config[key]}
    return asked


def check_sampling(sampling: dict[str, Any]) -> None:
    """Raise UserError for a number that cannot be sampled with; a run's come from a file, maybe somebody else's."""
    from src.config_checks import check_numbers
    from src.config_entries import SamplingConfig
    from src.setting import settings

    check_numbers(sampling, settings(SamplingConfig), "sampling.")


def sampling_of_run(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a training run sampled with, by its config, which was read from `path`.

    Raises:
        UserError: naming the file, for a setting that is missing, none, or out of its range.
    """
    from src.build import plain
    from src.config import RolloutConfig
    from src.run_config import typed_section

    given, keys = config.get("rollout", {}), ("guidance_scale", "max_plan_tokens", "plan", "image")
    if missing := [key for key in keys if key not in given]:
        raise UserError(f"{path}: rollout.{missing[0]}: missing; give the folder of a run made by src.train")
    rollout = typed_section(path, "rollout", RolloutConfig, {key: given[key] for key in keys})
    sampling = {"guidance_scale": rollout.guidance_scale, "max_plan_tokens": rollout.max_plan_tokens}
    for level in ("plan", "image"):
        sampling |= {f"{level}_{key}": value for key, value in plain(rollout[level]).items()}
    return sampling


def settings_of(sampling: dict[str, Any]) -> RolloutSettings:
    """The rollout's settings."""
    from src.rollout.levels import RolloutSettings
    from src.values import Sampling

    return RolloutSettings(
        plan=Sampling(sampling["plan_temperature"], top_k=sampling["plan_top_k"], top_p=sampling["plan_top_p"]),
        image=Sampling(
            sampling["image_temperature"],
            sampling["guidance_scale"],
            sampling["image_top_k"],
            sampling["image_top_p"],
        ),
        max_plan_tokens=sampling["max_plan_tokens"],
    )


def load_policy(chosen: dict[str, Any]) -> Policy:
    """The policy, on this process's device, its trained weights put in.

    Raises:
        UserError: for a checkpoint, adapter or weights that cannot be used together, or that hold NaN.
    """
    from src import build
    from src.loaded import check_loaded
    from src.run_config import literal

    # Without an adapter or weights of its own a fresh LoRA stands in: it changes nothing, and no copy is made.
    model = dict(chosen["model"])
    if "lora" in model and model.get("adapter") is None and chosen["weights"] is None:
        model["lora"] = {}
    given = {"run": {"seed": 0}, "model": model, "plugins": chosen["plugins"]}
    policy: Any = build.build_policy(literal(given))
    if chosen["weights"] is not None:
        from src.policies.weight_files import CheckpointError, check_finite
        from src.training.run_files import read_weights

        stored = read_weights(chosen["weights"], "give another run")
        weights = {name.removeprefix("policy."): value for name, value in stored.items()}
        try:
            check_finite(stored, chosen["weights"])
            foreign = policy.load_state_dict(weights, strict=False).unexpected_keys
            if foreign:
                raise RuntimeError(f"{len(foreign)} weights have no place in it, such as {foreign[0]}")
        except CheckpointError as error:
            raise UserError(str(error)) from error
        except RuntimeError as error:
            raise UserError(f"{chosen['weights']}: does not fit model.path={model['path']}: {error}") from error
    policy = policy.to(build.device()).eval()
    check_loaded(policy, model, chosen["weights"])
    return policy


def rollout_key(seed: int, prompt: str, rollout: int, candidate: int = 0) -> Any:
    """The key of a picture's noise: by the prompt's words, not by its place among others.

    A picture's first candidate is the picture without best-of-N, and more candidates begin with the fewer's.
    """
    from src.rollout.noise import RolloutKey

    digest = hashlib.blake2b(prompt.encode(), digest_size=7).digest()
    stream = "generate" if candidate == 0 else f"generate/candidate {candidate}"
    return RolloutKey(seed, stream, 0, int.from_bytes(digest, "little"), rollout)


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


def scores(rewards: RewardEnsemble, pixels: Tensor, records: Sequence[PromptRecord]) -> list[Entry]:
    """For each picture ``scores`` by expert, ``reward`` and ``details``; no ``reward`` where no expert applies.

    Raises:
        UserError: for an expert that fails.
    """
    from src.rewards.base import RewardError

    try:
        report = rewards(pixels, records, every_prompt=False)
    except RewardError as error:
        raise UserError(str(error)) from error
    result: list[Entry] = []
    for row in range(len(records)):
        entry: Entry = {
            "scores": {
                name: round(float(report.scores[row, column]), 6)
                for column, name in enumerate(report.names)
                if bool(report.applicable[row, column])
            }
        }
        if bool(report.judged[row]):
            entry["reward"] = round(float(report.total[row]), 6)
            entry["details"] = {
                name: round(float(value[row]), 6)
                for name, value in report.details.items()
                if not bool(value[row].isnan())
            }
        result.append(entry)
    return result


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
