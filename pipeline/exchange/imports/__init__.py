"""Completions made elsewhere, as rollouts: what is known is kept, what is not is marked."""
