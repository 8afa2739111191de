"""verl: what trainer.rollout_data_dir and trainer.validation_data_dir write, one <step>.jsonl a step.

Fields (verl, trainer/ppo/ray_trainer.py, `_dump_generations`): input, output, gts, score, step, and whatever the reward
function returned beside the score. Input and output are decoded without special tokens, so the prompt's chat markup is gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import integer, needed_text, number, rest_of, text


class Verl(Format):
    """One completion a line."""

    name = "verl"
    title = "verl's rollout dumps (rollout_data_dir)"
    signatures = (("input", "output", "score", "step"),)
    fields = {
        "input": "prompt_text",
        "output": "completion_text",
        "gts": "answer",
        "score": "reward",
        "step": "group",
        "uid": "group",
    }
    engine = "verl"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        group = (f"step {integer(values, 'step')}", *([uid] if (uid := text(values, "uid")) else []))
        answer = values.get("gts")
        yield Known(
            row=row,
            prompt=needed_text(values, "input"),
            completion=needed_text(values, "output"),
            answer=text(values, "gts") if not isinstance(answer, list | dict | bool) else None,
            reward=number(values, "score"),
            group=group,
            rest=rest_of(values, {"input", "output", "score", *(() if isinstance(answer, list | dict | bool) else ("gts",))}),
        )


FORMAT = Verl
