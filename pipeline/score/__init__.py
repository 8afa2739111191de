"""score: stored completions and a checkpoint in, their logprobs under it out (`python -m pipeline.score`)."""
