"""What the shell offers when an argument is completed."""

from __future__ import annotations


def algorithm_names(incomplete: str) -> list[str]:
    """Algorithms that begin so. Of a list separated by commas, what the last part may become."""
    from pipeline.algorithms import ALGORITHMS

    before, comma, begun = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in ALGORITHMS if name.startswith(begun)]
