"""Policies: the `Policy` protocol and the one implementation for Janus checkpoints."""

# What `model._target_` may name. src/config/factories.py holds the rule, docs/EXTENDING.md how a plugin adds its own.
FACTORIES = ("src.policies.load.load_janus",)
