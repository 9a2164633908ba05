"""``python -m src.benchmark``: how fast rollouts and a whole step are, beside the public ways to do the same."""
