"""Experts that have nothing to say about the prompts they are given: told before the first step, not never."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.rewards.ensemble import RewardEnsemble
from src.values import PromptRecord


def silent_experts(rewards: RewardEnsemble, prompts: Mapping[str, Sequence[PromptRecord]]) -> dict[str, str]:
    """By name, the experts of this process that apply to none of some prompts, each with a sentence for the user.

    prompts: by what they are called, as in {"training": ..., "test": ...}. Served experts are known by what they score
    only.
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

    Not where some of them are served: those say what they apply to when they score.
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
