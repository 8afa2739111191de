"""Engines on the nodes of a Ray cluster. Nothing outside this package imports Ray, an optional extra."""
