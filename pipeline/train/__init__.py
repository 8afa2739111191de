"""train: a checkpoint, rollouts and a shaped table in, the next checkpoint out (`python -m pipeline.train`)."""
