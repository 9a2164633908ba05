"""``python -m src.export``."""
