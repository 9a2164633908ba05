"""``python -m src.score_geneval``."""
