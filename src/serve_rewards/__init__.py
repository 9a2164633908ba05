"""``python -m src.serve_rewards``."""
