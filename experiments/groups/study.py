"""Group size against prompts a step, at 64 rollouts a step."""

from pathlib import Path

from experiments.runner import Arm, Study, main


def arm(size: int) -> Arm:
    changed = () if size == 8 else (f"rollout.group_size={size}", f"rollout.prompts_per_step={64 // size}")
    return Arm(f"{64 // size}x{size}", changed)


STUDY = Study(folder=Path(__file__).parent, arms=tuple(map(arm, (2, 4, 8, 16, 32))), baseline="8x8")

if __name__ == "__main__":
    main(STUDY)
