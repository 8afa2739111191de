"""The work of rollbook: generate, score, shape, train, evaluate, report. `flows` orders it, `schemas` describes its tables."""
