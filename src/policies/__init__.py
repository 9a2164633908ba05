"""Policies: the `Policy` protocol and the one implementation for Janus checkpoints."""

# What `model._target_` may name. src/factories.py holds the rule; a plugin's policies are added by docs/EXTENDING.md.
FACTORIES = ("src.policies.load.load_janus",)
