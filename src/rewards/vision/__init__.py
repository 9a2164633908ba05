"""Shared by the judges: checkpoints, layouts of their networks, preprocessing, boxes."""
