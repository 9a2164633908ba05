"""``python -m src.benchmark``: the speed of rollouts and of a whole step, compared with public implementations."""
