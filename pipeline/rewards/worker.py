"""`python -m pipeline.rewards.worker PARENT_PID`: one reward worker, started by a pool."""

from __future__ import annotations

import sys

from pipeline.common.workers import supervised


def main() -> None:
    supervised(int(sys.argv[1]), _grade)


def _grade(requests: int, replies: int) -> None:
    from pipeline.rewards.grading import serve

    with open(requests, "rb", buffering=1 << 16) as lines:
        serve(lines, replies)


if __name__ == "__main__":
    main()
