"""Training: collect experience, update on it, and the Lightning pieces around the two."""
