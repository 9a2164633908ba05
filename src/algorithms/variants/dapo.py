"""DAPO (arXiv 2503.14476, eq. 8): GRPO's surrogate with four changes, two of which live outside the loss.

- clip-higher: ``clip_high`` (0.28) above ``clip_low`` (0.2), so that rare tokens may become likely;
- token-level loss: the mean over all tokens of the step (which T2I-R1's GRPO has, too);
- dynamic sampling: groups without signal are replaced (:func:`src.training.options.dynamic_sampling.refill`);
- overlong shaping: :func:`src.algorithms.plan_length.overlong_penalty`.

No KL (beta 0).
"""

from __future__ import annotations

from src.algorithms.advantages import group_normalised
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import token_clipped

ALGORITHM = Algorithm("dapo", group_normalised, token_clipped, closed_form="clipped")
