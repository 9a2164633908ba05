"""Finds experts that apply to none of the prompts, and reports them before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.rewards.ensemble import RewardEnsemble
from src.values import PromptRecord


def silent_experts(rewards: RewardEnsemble, prompts: Mapping[str, Sequence[PromptRecord]]) -> dict[str, str]:
    """The experts of this process that apply to none of some prompts, by name, each with a message for the user.

    prompts: by name, as in {"training": ..., "test": ...}. Served experts are known only by what they score.
    """
    told = {}
    for name, expert in rewards.experts_here.items():
        silent = [
            part for part, records in prompts.items() if records and not any(expert.applicable(r) for r in records)
        ]
        if silent:
            needs = f": it needs {expert.needs} in a record" if expert.needs else ""
            what = "only watched" if name in rewards.monitors else "part of the reward"
            told[name] = f"expert {name!r} ({what}) applies to no {' or '.join(silent)} prompt{needs}"
    return told


def check_covered(rewards: RewardEnsemble, records: Sequence[PromptRecord]) -> None:
    """Raise ValueError where no expert with a weight applies to any of the records.

    Not if some of them are served: those report what they apply to only with their scores.
    """
    here = {name: expert for name, expert in rewards.experts_here.items() if name not in rewards.monitors}
    elsewhere = set(rewards.names) - set(rewards.experts_here) - set(rewards.monitors)
    if elsewhere or not records or any(e.applicable(record) for record in records for e in here.values()):
        return
    needs = "; ".join(f"{name} needs {expert.needs or 'other prompts'}" for name, expert in here.items())
    raise ValueError(
        f"rewards: no expert with a weight applies to any of the {len(records)} training prompts ({needs});"
        " add these fields to the records of data.path, or choose other rewards=..."
    )
