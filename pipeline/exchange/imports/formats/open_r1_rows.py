"""Wide sets of reasoning such as OpenR1-Math-220k: a problem a row, its answers and what is known of each in aligned lists.

Columns: problem, answer, uuid, generations; of each generation correctness_math_verify, correctness_llama, finish_reasons and
is_reasoning_complete, any of which may be null.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.explode import parts_of
from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import Values, needed_text, number, reference, rest_of, text

JUDGED = ("correctness_math_verify", "correctness_llama")
"""What says whether a generation is right, the first that a row has first."""
LISTS = ("generations", *JUDGED, "finish_reasons", "is_reasoning_complete")


class OpenR1(Format):
    """As many completions a row as there are generations."""

    name = "openr1"
    title = "problems with their generations, as OpenR1-Math has them"
    signatures = (("problem", "generations"), ("question", "generations"), ("prompt", "generations"))
    fields = {
        "problem": "prompt_text",
        "generations": "completion_text, one each",
        "answer": "answer",
        "correctness_math_verify, correctness_llama": "reward_<the same>; the reward is the first that is there",
        "finish_reasons": "finish_reason",
        "uuid": "prompt_id",
    }
    engine = "openr1"

    def known(self, row: SourceRow) -> Iterable[Known]:
        asked = next(name for name in ("problem", "question", "prompt") if name in row.values)
        lists = [name for name in LISTS if name in row.values]
        own = {*lists, asked, "answer", "uuid", "messages", "correctness_count"}
        if not isinstance(row.values["generations"], list):
            raise ValueError("column generations: is null or no list")
        for values in parts_of(row.values, lists):
            judged: dict[str, Any] = {name: number(values, name) for name in JUDGED if values.get(name) is not None}
            yield Known(
                row=row,
                prompt=needed_text(values, asked),
                completion=needed_text(values, "generations"),
                answer=reference(values.get("answer")),
                prompt_id=text(values, "uuid"),
                group=(f"{row.file} {row.number}",),
                components=judged,
                reward=next(iter(judged.values()), None),
                finish_reason=_finish(values),
                rest=rest_of(values, own) | rest_of({"complete": values.get("is_reasoning_complete")}, set()),
            )


def _finish(values: Values) -> str | None:
    """As the server said; else whether the reasoning is complete says it."""
    return text(values, "finish_reasons")


FORMAT = OpenR1
