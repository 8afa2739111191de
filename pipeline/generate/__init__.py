"""generate: prompts and a checkpoint in, rollouts out. vLLM in a process of its own (`python -m pipeline.generate`)."""
