"""Loggers beside metrics.csv: MLflow (in a process of its own) and the construction of Lightning's own."""
