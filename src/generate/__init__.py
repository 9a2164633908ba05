"""``python -m src.generate``."""
