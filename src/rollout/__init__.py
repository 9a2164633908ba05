"""Rollouts: keyed noise, sampling, the decode loop, the two levels."""
