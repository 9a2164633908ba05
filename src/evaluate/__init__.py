"""What an evaluation says of several models on the same prompts and noise: figures, intervals, a report to look at."""
