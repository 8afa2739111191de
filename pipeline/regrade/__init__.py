"""Grading as a stage of its own: stored completions, other graders, a new rollouts artifact. Nothing is generated."""
