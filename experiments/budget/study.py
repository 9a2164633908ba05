"""How far the default goes when it is given more time: about 5 minutes and about an hour of two cores a run.

The learning rate falls over the whole of a run, so that its length has to be known beforehand: it is given in
steps: of half a second in the one, of 0.73 s and evaluations in the other, the fastest and the slowest that had been
measured on two otherwise idle cores (--parallel 1).
"""

from pathlib import Path

from experiments.runner import Arm, Study, main

STUDY = Study(
    folder=Path(__file__).parent,
    arms=(Arm("5_minutes", steps=550), Arm("an_hour", ("evaluation.every=100",), steps=4500)),
    baseline="5_minutes",
)

if __name__ == "__main__":
    main(STUDY)
