"""Dr.GRPO, "GRPO done right" (arXiv 2503.20783, section 3.2): GRPO without its two biases.

    A = r - mean_group                              (no std: easy and hard prompts weigh alike)
    loss = -sum of S over tokens / (rollouts * longest possible length)
                                                    (no division by the length that happened)

with GRPO's clipped S. The paper trains without KL (beta 0).
"""

from __future__ import annotations

from src.algorithms.advantages import group_centred
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import token_clipped

ALGORITHM = Algorithm("dr_grpo", group_centred, token_clipped, aggregation="constant", closed_form="clipped")
