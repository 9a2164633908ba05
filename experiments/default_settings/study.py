"""What the default should be: DAPO was ahead after 100 steps; is it after the default's 300, and what makes it so?

With one update on each rollout, DAPO is GRPO without KL and with groups that have no signal replaced. `no_kl` leaves
out the KL alone, at GRPO's cost; `dapo_200` has about the rollouts that GRPO samples in 300 steps.
"""

from pathlib import Path

from experiments.runner import Arm, Study, main

STUDY = Study(
    folder=Path(__file__).parent,
    arms=(
        Arm("grpo"),
        Arm("no_kl", ("algorithm.beta=0",)),
        Arm("dapo", ("experiment=dapo",)),
        Arm("dapo_200", ("experiment=dapo",), steps=200),
    ),
    baseline="grpo",
    steps=300,
    figures=("seconds_per_step",),
)

if __name__ == "__main__":
    main(STUDY)
