"""GRPO as T2I-R1 trains it (arXiv 2505.00703; GRPO: arXiv 2402.03300).

    A = (r - mean_group) / (std_group + 1e-4), the same for every token of a rollout
    S = min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), ratio = exp(logp - old_logp)

averaged over all counted tokens of both levels. (DeepSeekMath averages each sequence first; T2I-R1's
released code does not.)
"""

from __future__ import annotations

from src.algorithms.advantages import group_normalised
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import token_clipped

ALGORITHM = Algorithm("grpo", group_normalised, token_clipped, closed_form="clipped")
