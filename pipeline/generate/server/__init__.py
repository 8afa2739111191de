"""generate from running vLLM servers: the stage in a process of its own (`python -m pipeline.generate.server`)."""
