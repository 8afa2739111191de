"""Environments: what answers a policy within an episode. They run in worker processes, as graders do."""
