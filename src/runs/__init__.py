"""A run's folder: who owns it, what is written there and how, and going on from it."""
