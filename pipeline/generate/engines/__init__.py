"""Engines in processes of their own: one or several on this machine (`python -m pipeline.generate.engines`)."""
