"""SkyRL: what it dumps of an evaluation, dumped_evals/global_step_<N>_evals/<data source>.jsonl.

Fields (0.4): input_prompt and output_response (texts with special tokens written out), score (a number, or one a token),
stop_reason, env_class, env_extras, data_source. aggregated_results.jsonl beside them holds means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import Values, messages, needed_text, number, numbers, reference, rest_of, text


class SkyRL(Format):
    """One completion a line."""

    name = "skyrl"
    title = "SkyRL's dumped evaluations"
    signatures = (("input_prompt", "output_response", "score"),)
    fields = {
        "input_prompt": "prompt_text",
        "output_response": "completion_text",
        "score": "reward (of one a token: their sum)",
        "env_extras.reward_spec.ground_truth": "answer",
        "stop_reason": "finish_reason",
        "<file>": "group",
    }
    engine = "SkyRL"
    not_rows = ("aggregated_results.jsonl",)

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        score = values.get("score")
        extras: Any = values.get("env_extras") or {}
        spec = extras.get("reward_spec") or extras.get("reward_model") or {}
        yield Known(
            row=row,
            prompt=messages(values, "input_prompt"),
            prompt_is_whole=True,
            completion=needed_text(values, "output_response"),
            reward=sum(numbers(values, "score") or ()) if isinstance(score, list) else number(values, "score"),
            answer=reference(spec.get("ground_truth")),
            finish_reason=text(values, "stop_reason"),
            group=_step(row),
            rest=rest_of(
                values, {"input_prompt", "output_response", "stop_reason", *(() if isinstance(score, list) else ("score",))}
            ),
        )


def _step(row: SourceRow) -> tuple[str, ...]:
    """The evaluation: its folder and its file."""
    folder = "" if row.path is None else row.path.parent.name
    source: Values = row.values
    return (folder, row.file, str(source.get("data_source")))


FORMAT = SkyRL
