"""Rewards: graders, and the pool of worker processes that runs them under a time and memory limit.

`registry` names the graders and checks a config, `pool` grades. This file imports nothing, so that a worker starts
fast.
"""
