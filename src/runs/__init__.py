"""A run's folder: its owner, its files and how they are written, and how to resume from it."""
