"""From the rollouts of one model to its figures, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch

from src.evaluate.diversity import mean_pairwise_distance, vendi_score
from src.evaluate.plans import distinct, repeated, same
from src.evaluate.samples import Drawn
from src.intervals import Figure

# The meaning of figures that do not come from an expert, for the report.
MEANINGS = {
    "plan/ended": "share of plans that end by themselves",
    "plan/tokens": "length of a plan in tokens, the end token included",
    "plan/repeated": "share of a plan's 4-grams of words that stood in it before",
    "plan/distinct_1": "different words over all words, in the plans of one prompt",
    "plan/distinct_2": "different pairs of words over all pairs, in the plans of one prompt",
    "plan/same": "share of pairs of one prompt's plans that are the same text",
    "diversity/vendi": "how many different pictures a prompt has in effect (Vendi score)",
    "diversity/distance": "mean of 1 - cosine between the pictures of one prompt",
}


def figures_of(drawn: Sequence[Drawn]) -> dict[str, Figure]:
    """Every figure of one model, by name; the rollouts are ordered by prompt, as from `draw`.

    ``reward``, each expert's score and each detail are means over samples, as in a run's summary; ``plan/distinct_n``,
    ``plan/same`` and ``diversity/...`` are one number a prompt.
    """
    prompts = [list(group) for _, group in groupby(drawn, key=lambda one: one.sample.index)]
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for place, group in enumerate(prompts):
        for name, value in [*_of_samples(group), *_of_prompt(group)]:
            for columns in (sums, counts):
                columns.setdefault(name, np.zeros(len(prompts)))
            sums[name][place] += value
            counts[name][place] += 1
    return {name: Figure(sums[name], counts[name]) for name in sums}


def _of_samples(group: Sequence[Drawn]) -> Iterator[tuple[str, float]]:
    for one in group:
        sample = one.sample
        if sample.reward is not None:
            yield "reward", sample.reward
        yield from sample.scores.items()
        yield from sample.details.items()
        yield "plan/ended", float(sample.ended)
        yield "plan/tokens", float(one.plan_tokens)
        share = repeated(sample.plan)
        if share is not None:
            yield "plan/repeated", share


def _of_prompt(group: Sequence[Drawn]) -> Iterator[tuple[str, float]]:
    """What compares the samples of one prompt; nothing where there is but one."""
    if len(group) < 2:
        return
    plans = [one.sample.plan for one in group]
    for name, value in (
        ("plan/distinct_1", distinct(plans, 1)),
        ("plan/distinct_2", distinct(plans, 2)),
        ("plan/same", same(plans)),
    ):
        if value is not None:
            yield name, value
    embeddings = torch.stack([one.embedding for one in group])
    yield "diversity/vendi", vendi_score(embeddings)
    yield "diversity/distance", mean_pairwise_distance(embeddings)
