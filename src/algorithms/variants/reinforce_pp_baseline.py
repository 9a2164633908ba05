"""REINFORCE++-baseline (arXiv 2501.03262): the group's mean as baseline, the whole batch's std as scale.

    A = (r - mean_group) / (std_batch + 1e-4), S as in GRPO

Unlike GRPO's, the scale does not blow up groups whose rewards hardly differ. The paper's KL is k2 in the
loss.
"""

from __future__ import annotations

from src.algorithms.advantages import group_centred_batch_normalised
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import token_clipped

ALGORITHM = Algorithm(
    "reinforce_pp_baseline", group_centred_batch_normalised, token_clipped, whole_batch=True, closed_form="clipped"
)
