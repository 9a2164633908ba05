"""Prompts: records, the JSONL reader, splits, the training stream and the Lightning data module."""
