"""Studies 1 and 2 in the larger drawn world: either level against both, guided against conditional log-probs.

The warm start, a Janus of about 30 M parameters, and its prompts are made under runs/large_world where they are
missing; that takes a card. A smaller one that was made there beforehand is taken as it is; README.md has its command
for a CPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from experiments.runner import Arm, Study, main

WARM_START = Path("runs/large_world")
WORLD = ("experiment=large_world",)
PLAN, IMAGE = "algorithm.level_weights.plan=0.0", "algorithm.level_weights.image=0.0"
WIDE, CONDITIONAL = "rollout.guidance_scale=3.0", "algorithm.logp=conditional"
STUDY = Study(
    folder=Path(__file__).parent,
    arms=(
        Arm("both", WORLD),
        Arm("plan_only", (*WORLD, IMAGE)),
        Arm("image_only", (*WORLD, PLAN)),
        Arm("scale_1.0", (*WORLD, "rollout.guidance_scale=1.0")),
        Arm("conditional_1.5", (*WORLD, CONDITIONAL)),
        Arm("guided_3", (*WORLD, WIDE)),
        Arm("conditional_3", (*WORLD, WIDE, CONDITIONAL)),
    ),
    baseline="both",
)


def make_warm_start(folder: Path = WARM_START) -> None:
    """Prompts and checkpoint of the larger world, where they are missing.

    Raises:
        SystemExit: if there is no checkpoint and no card to make one on.
    """
    import torch

    module, of_world = [sys.executable, "-m"], ["--world", "large", "--out"]
    if not (folder / "prompts" / "test.jsonl").is_file():
        subprocess.run([*module, "src.shapes.splits", *of_world, str(folder / "prompts"), "--overwrite"], check=True)
    if (folder / "checkpoint" / "RECIPE.json").is_file():
        return
    if not torch.cuda.is_available():
        sys.exit(
            f"{folder / 'checkpoint'}: missing, and there is no card to make its 30 M parameters on;"
            " experiments/large_world/README.md has the command of a smaller one for a CPU"
        )
    where = ["--device", "cuda"]
    subprocess.run([*module, "src.shapes.pretrain", *of_world, str(folder / "checkpoint"), *where], check=True)


if __name__ == "__main__":
    main(STUDY, make_warm_start)
