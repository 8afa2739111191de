"""Orchestration only: order, retries, progress. The work is in `pipeline`."""
