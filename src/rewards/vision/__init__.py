"""What the judges share: checkpoints, layouts of their networks, preprocessing, boxes."""
