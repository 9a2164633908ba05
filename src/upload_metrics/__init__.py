"""``python -m src.upload_metrics``."""
