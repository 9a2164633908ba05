"""Reward experts: pluggable, torchmetrics-style modules that score images against prompts."""
