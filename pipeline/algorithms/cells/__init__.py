"""The cells that algorithms are composed of: small, pure, each with its formula.

Advantages are Polars expressions (no torch); the others take and give flat tensors over completion tokens, in fp32.
"""
