"""Every algorithm variant at its published settings (configs/experiment), everything else as in the main job."""

from pathlib import Path

from experiments.runner import Arm, Study, main

OTHERS = ("dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "reinforce_pp_baseline")
STUDY = Study(
    folder=Path(__file__).parent,
    arms=(Arm("grpo"), *(Arm(name, (f"experiment={name}",)) for name in OTHERS)),
    baseline="grpo",
)

if __name__ == "__main__":
    main(STUDY)
