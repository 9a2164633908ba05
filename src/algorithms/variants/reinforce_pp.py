"""REINFORCE++ (arXiv 2501.03262): no group baseline; rewards normalised over the whole prompt batch.

    A = (r - mean_batch) / (std_batch + 1e-4), S as in GRPO

The paper's KL is k1 in the reward (``algorithm.kl=k1 algorithm.kl_in=reward``). Where prompts differ in what
they can score, `reinforce_pp_baseline` is the better choice.
"""

from __future__ import annotations

from src.algorithms.advantages import batch_normalised
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import token_clipped

ALGORITHM = Algorithm(
    "reinforce_pp", batch_normalised, token_clipped, whole_batch=True, group_baseline=False, closed_form="clipped"
)
