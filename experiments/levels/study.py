"""Both levels against the plan alone and the image alone; the KL stays on both levels in all three."""

from pathlib import Path

from experiments.runner import Arm, Study, main

STUDY = Study(
    folder=Path(__file__).parent,
    arms=(Arm("both"), Arm("plan_only", ("experiment=plan_only",)), Arm("image_only", ("experiment=image_only",))),
    baseline="both",
)

if __name__ == "__main__":
    main(STUDY)
