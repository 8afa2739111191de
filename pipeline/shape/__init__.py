"""shape: rollouts in, advantages and weights out (`python -m pipeline.shape`). Polars only; no tokens are read."""
