"""The loop of a worker whose grader takes many completions at once: a reward model, a judge, a file of labels.

Such a grader is loaded once for all workers. It reads what a model wrote and runs none of it, so it has no memory limit, and it
sees the devices and the variables that it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from pipeline.common.errors import UserError
from pipeline.common.lines import decode, encode, one_line
from pipeline.rewards.items import RewardItem, Score


class BatchGrader(Protocol):
    """A grader that is opened once and then given completions, whole groups in order."""

    notes: Sequence[str]
    """What the user should know before grading starts."""
    seconds_per_item: float | None
    """Longest that a completion may take; None: `reward.timeout_seconds`."""

    def grade(self, items: Sequence[RewardItem]) -> list[Score]:
        """A score for each item, in their order."""


def serve_batches(start: Mapping[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer on `replies` until the pool closes `requests`."""

    def reply(value: dict[str, Any]) -> None:
        replies.write(encode(value))
        replies.flush()

    try:
        grader = _opened(start["components"][0])
    except UserError as error:
        reply({"refused": str(error)[:3000]})
        return
    except Exception as error:
        reply({"refused": one_line(f"cannot start: {type(error).__name__}: {error}")})
        return
    reply({"ready": True, "notes": list(grader.notes), "seconds_per_item": grader.seconds_per_item})
    for line in requests:
        items = [RewardItem(*fields) for fields in decode(line)]
        try:
            scores = grader.grade(items)
        except Exception as error:
            failed = one_line(f"{type(error).__name__}: {error}").removesuffix(":")
            scores = [Score(None, failed)] * len(items)
        reply({"scores": [[score.score, score.error, score.remark] for score in scores]})


def _opened(component: Mapping[str, Any]) -> BatchGrader:
    from pipeline.rewards.registry import batched_module

    module = batched_module(component["grader"])
    grader: BatchGrader = getattr(module, component["grader"])(**component["args"])
    return grader
