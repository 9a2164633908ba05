"""Training on a reward that is weak on purpose (`colours.NamedColours`), with the drawn world's judge as a monitor.

`reward` is then the weak one; all-correct tells what it does to the pictures, the run's watch whether it was seen.
"""

from pathlib import Path

from experiments.runner import Arm, Study, main

EXPERTS = (
    "plugins=[experiments]",
    "+rewards.experts.named_colours={_target_: experiments.reward_hacking.colours.NamedColours}",
    "+rewards.weights.shapes=0",
    # As short as the runs are; the window is 100 steps otherwise.
    "rewards.watch.window=50",
)
STUDY = Study(
    folder=Path(__file__).parent,
    arms=(Arm("judge"), Arm("weak", EXPERTS), Arm("weak_beta_0.1", (*EXPERTS, "algorithm.beta=0.1"))),
    baseline="judge",
    figures=("reward_before", "reward_after", "no_extra_before", "no_extra_after"),
)

if __name__ == "__main__":
    main(STUDY)
