"""Guided against conditional log-probs in the image level's loss, over three guidance scales.

The scale is the sampler's, in training and in evaluation. At 1.0 the guided distribution is the conditional one.
"""

from pathlib import Path

from experiments.runner import Arm, Study, main

STUDY = Study(
    folder=Path(__file__).parent,
    arms=(
        Arm("scale_1.0", ("rollout.guidance_scale=1.0",)),
        Arm("guided_1.5"),
        Arm("conditional_1.5", ("algorithm.logp=conditional",)),
        Arm("guided_3", ("rollout.guidance_scale=3.0",)),
        Arm("conditional_3", ("rollout.guidance_scale=3.0", "algorithm.logp=conditional")),
    ),
    baseline="guided_1.5",
)

if __name__ == "__main__":
    main(STUDY)
