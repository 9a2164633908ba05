"""Prompts: records, the JSONL reader, splits, the training stream and the Lightning data module."""

# What `data._target_` may name (src/config/factories.py).
FACTORIES = ("src.data.module.PromptDataModule",)
