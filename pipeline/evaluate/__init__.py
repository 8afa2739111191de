"""evaluate: graded completions of held-out prompts in, figures with intervals out (`python -m pipeline.evaluate`)."""
