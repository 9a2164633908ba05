"""Policies: the `Policy` protocol and the one implementation for Janus checkpoints."""
