"""``python -m src.benchmark``: rollout speed and a whole step, compared with public implementations and targets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import command as cli
from src.config.errors import UserError
from src.config.schema import ROOT

if TYPE_CHECKING:
    from src.benchmark.rows import Row

RESULTS = ROOT / "experiments" / "rollout_speed"
WRITTEN = ("cpu.csv", "cpu.png", "gpu.csv", "gpu.png")
PARTS = ("image_step", "scaling", "ablation", "peers", "train_step")


def benchmark(config: Any) -> int:
    """Run the chosen parts at the chosen sizes; 0 whatever the bars say."""
    import torch

    from kernels import BackendUnavailable, operations
    from kernels.benchmark.clock import copy_bandwidth
    from src.benchmark import rows as found
    from src.benchmark.models import SIZES, TINY
    from src.benchmark.plot import plot
    from src.policies.base import EngineSettings
    from src.training.out_of_memory import release_memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    sizes = list(config.sizes or (SIZES if on_gpu else (TINY,)))
    _check(sizes, list(config.parts))
    folder = _folder(config)
    if not on_gpu and set(sizes) - {TINY}:
        raise UserError(f"sizes={','.join(sizes)}: the full-size models need a GPU; on a CPU choose sizes=[tiny]")
    try:
        backend = operations(config.kernels, device)
    except BackendUnavailable as error:
        raise UserError(str(error)) from error
    _quiet()
    copied = copy_bandwidth(device, 3, 2**31 if on_gpu else 2**26)
    facts = _facts(device, copied, config, backend.name)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    rows: list[Row] = []
    for size in sizes:
        rows += _of_size(size, config, device, copied, backend, EngineSettings(kernels=config.kernels))
        release_memory()  # the model's, so that it does not count in the next peak
    print("\n" + found.table(rows))
    print("\nbars")
    for bar in found.bars(rows, facts["card"]):
        word = {True: "met    ", False: "NOT MET", None: "elsewhere"}[bar.met]
        print(f"  {word}  {bar.name}: {bar.found} (wanted: {bar.wanted})")
    folder.mkdir(parents=True, exist_ok=True)
    name = "gpu" if on_gpu else "cpu"
    found.write_csv(folder / f"{name}.csv", rows, facts)
    plot(folder / f"{name}.png", rows, f"{facts['card']}, torch {facts['torch']}, commit {facts['commit']}")
    print(f"\n{folder / name}.csv, {folder / name}.png")
    return 0


def _of_size(size: str, config: Any, device: Any, copied: float, backend: Any, engine: Any) -> list[Row]:
    """All parts at one size; what is written down so far is printed as it comes."""
    import torch

    from src.benchmark import rollouts
    from src.benchmark.models import random_policy
    from src.benchmark.rows import H200_BANDWIDTH
    from src.benchmark.train_step import train_step

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    policy = random_policy(size, device, dtype)
    policy.engine = engine
    limit = H200_BANDWIDTH if device.type == "cuda" and "H200" in torch.cuda.get_device_name(device) else copied
    bench = rollouts.Bench(size, policy, copied, limit, config.rounds)
    rows: list[Row] = []
    for part in config.parts:
        print(f"{size}: {part} ...", flush=True)
        if part in ("image_step", "scaling"):
            rows += rollouts.image_steps(bench, list(config.images if part == "image_step" else config.scaling), part)
        elif part == "ablation":
            rows += rollouts.ablation(bench, config.images[0])
        elif part == "peers":
            rows += rollouts.peers(bench, config.images[0], config.compile)
        else:
            rows += train_step(bench, backend, config.images[0], config.group_size, config.memory_gib)
        rollouts.release(bench)
    return rows


def _folder(config: Any) -> Path:
    """Where the rows go; raises UserError, before anything is measured, if the folder has other content."""
    if not config.out:
        return RESULTS
    from src.runs.output_folder import check_free

    check_free(Path(config.out), config.overwrite, WRITTEN)
    return Path(config.out)


def _check(sizes: list[str], parts: list[str]) -> None:
    from src.benchmark.models import SIZES, TINY

    for key, given, known in (("sizes", sizes, (TINY, *SIZES)), ("parts", parts, PARTS)):
        for one in given:
            if one not in known:
                raise UserError(f"{key}={one}: expected some of {', '.join(known)}")


def _facts(device: Any, copied: float, config: Any, kernels: str) -> dict[str, str]:
    import torch
    import transformers

    from src.runs.provenance import git_commit, hardware

    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "card": card,
        "hardware": str(hardware()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": git_commit() or "unknown",
        "kernels": kernels,
        "rounds": str(config.rounds),
        "copy_tb_per_s": f"{copied / 1e12:.4f}",
    }


def _quiet() -> None:
    from src.policies.load import quiet

    quiet()


COMMAND = cli.Command(
    name="benchmark",
    about="Measure rollout speed and a whole training step on randomly initialised models, beside the public ways.",
    examples=("", "sizes=[7b] parts=[image_step,peers]", "sizes=[tiny] rounds=3 out=/tmp/benchmark"),
    task=benchmark,
    config="benchmark",
    groups=(),
    keys=(
        "sizes=[tiny,1b,7b]         null: 1b and 7b on a GPU, tiny on a CPU",
        f"parts=[{','.join(PARTS)}]",
        "images=[16,64]             numbers of images; the first is that of peers, ablation and train_step",
        "rounds=5  compile=true     compile: time the compiled peer, too",
        "out=DIR                    null: experiments/rollout_speed; overwrite=true writes beside or over earlier rows",
    ),
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
