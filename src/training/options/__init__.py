"""What a step may do besides: length penalties, dynamic sampling, a KL in the reward, masks. One option a file."""
