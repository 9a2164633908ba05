"""Benchmark images: ``python -m src.benchmark_images name=geneval prompts=PATH run=RUN n=4 out=DIR``.

Paints a public benchmark's images into the layout its own scorer reads (docs/BENCHMARKS.md). After an interruption
the same command continues where it stopped.

    python -m src.benchmark_images name=geneval prompts=geneval/prompts run=runs/bicot_lora out=images/geneval
    python -m src.benchmark_images name=wise prompts=WISE/data_verified model=janus_pro_7b out=images/wise
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import command as cli
from src.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from src.benchmark_images.writer import Job, Paint
    from src.policies.base import Policy
    from src.rollout.levels import RolloutSettings


def benchmark_images(config: Any) -> int:
    """Paint what is missing; returns the exit code. Input errors are reported before any weight is loaded."""
    from src.benchmark_images.manifest import check_folder
    from src.benchmark_images.writer import write_benchmark
    from src.policies.prompt_checks import check_prompts, warn_of
    from src.trained import choose_model, load_policy, settings_of
    from src.values import PromptRecord

    if config.out is None:
        raise UserError("out: missing; give the folder for the images")
    out = Path(config.out).expanduser()
    chosen = choose_model(config)
    job = read_job(config, facts_of(config, chosen))
    check_folder(out, job.manifest())
    asked = [PromptRecord(item.prompt, place=item.place) for item in job.items]
    warn_of(check_prompts(chosen["model"], chosen["sampling"]["max_plan_tokens"], asked))
    from src.policies.load import quiet

    quiet()
    painter = paint_with(load_policy(chosen), settings_of(chosen["sampling"]))
    place = {"there": 0, "all": 0}

    def report(there: int, total: int) -> None:
        place.update(there=there, all=total)
        if there == total or there % 100 == 0:
            print(f"{there} of {total} images", flush=True)

    try:
        written = write_benchmark(job, out, painter, config.batch_size, report)
    except KeyboardInterrupt:
        print(
            f"interrupted with {place['there']} of {place['all']} images; the same command continues", file=sys.stderr
        )
        return cli.EXIT_INTERRUPTED
    print(f"{out}: {written.painted} images painted, {written.kept} already there; docs/BENCHMARKS.md explains scoring")
    return 0


def facts_of(config: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """What paints the images, as benchmark.json keeps it: paths in full, so that it is the same from anywhere."""

    def full(path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().resolve())

    from src.trained import find_run

    model = chosen["model"]
    return {
        "model": full(model.get("path")) or model.get("repository"),
        "adapter": full(model.get("adapter")),
        "run": None if config.run is None else full(str(find_run(config.run))),
        "sampling": chosen["sampling"],
    }


def read_job(config: Any, facts: dict[str, Any]) -> Job:
    """The benchmark's items and how many images of each.

    Raises:
        UserError: for a benchmark that does not exist, prompts that are missing or another's, or an n it cannot take.
    """
    from src.benchmark_images.registry import BENCHMARKS
    from src.benchmark_images.writer import Job

    names = ", ".join(BENCHMARKS)
    if config.name not in BENCHMARKS:
        given = "missing" if config.name is None else f"{config.name!r} is not a known benchmark"
        raise UserError(f"name: {given}; expected one of {names}")
    benchmark = BENCHMARKS[config.name]
    if config.prompts is None:
        raise UserError(f"prompts: missing; give the path of your copy of {benchmark.name}'s prompts")
    try:
        items = benchmark.read(Path(config.prompts).expanduser())
    except ValueError as error:
        raise UserError(str(error)) from error
    if not items:
        raise UserError(f"prompts={config.prompts}: contains no prompts")
    n = benchmark.samples if config.n is None else config.n
    return Job(benchmark, items, n, config.seed, config.model_name, facts)


def paint_with(policy: Policy, settings: RolloutSettings) -> Paint:
    """A generator of the writer's kind: a picture's noise is keyed by its seed alone."""
    import torch

    from src.rollout.levels import roll_out
    from src.rollout.noise import RolloutKey

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Tensor]:
        keys = [RolloutKey(seed, "benchmark", 0, 0, 0) for seed in seeds]
        with torch.no_grad():
            return list(roll_out(policy, policy.decoder(), prompts, keys, settings).pixels)

    return paint


COMMAND = cli.Command(
    name="benchmark_images",
    about="Paint the images of a public benchmark in the layout its own scorer reads; interrupted, it goes on.",
    examples=(
        "name=geneval prompts=geneval/prompts/evaluation_metadata.jsonl run=runs/bicot_lora out=images/geneval",
        "name=t2i_compbench prompts=T2I-CompBench/examples/dataset run=runs/bicot_lora out=images/compbench",
        "name=dpg prompts=ELLA/dpg_bench/prompts model=janus_tiny n=4 out=images/dpg",
    ),
    task=benchmark_images,
    config="benchmark_images",
    groups=("model",),
    keys=(
        "name=geneval | t2i_compbench | wise | dpg | tiif",
        "prompts=PATH                      your copy of the benchmark's prompts; docs/BENCHMARKS.md",
        "run=NAME | run=DIR | adapter=DIR  what was trained; neither: the base model",
        "n seed batch_size temperature guidance_scale max_plan_tokens model_name",
        "out=DIR                           where to; what is there already is not painted again",
    ),
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
