"""Training: `train.py` calls `mst.training.runs.run` with a file of configs/."""
