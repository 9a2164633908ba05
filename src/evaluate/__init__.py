"""Evaluates several models on the same prompts and noise: figures, intervals, an HTML report."""
