"""LLaMA-Factory: generated_predictions.jsonl of do_predict (predict_with_generate), or of its vLLM script.

Fields (0.9): prompt (with special tokens written out), predict, label (the reference; texts without special tokens).
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import needed_text, rest_of, text


class LlamaFactory(Format):
    """One completion a line, without a reward."""

    name = "llamafactory"
    title = "LLaMA-Factory's predictions"
    signatures = (("prompt", "predict", "label"),)
    fields = {"prompt": "prompt_text", "predict": "completion_text", "label": "answer"}
    engine = "LLaMA-Factory"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        yield Known(
            row=row,
            prompt=needed_text(values, "prompt"),
            prompt_is_whole=True,
            completion=needed_text(values, "predict"),
            answer=text(values, "label"),
            rest=rest_of(values, {"prompt", "predict", "label"}),
        )


FORMAT = LlamaFactory
