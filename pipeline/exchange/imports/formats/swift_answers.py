"""ms-swift: what `swift infer` writes, result.jsonl.

Fields (4.6): response, labels (the reference), logprobs (a server's, or null), messages, which end with the response.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import asked, messages, needed_text, reference, rest_of


class SwiftAnswers(Format):
    """One completion a line, without a reward."""

    name = "ms-swift-infer"
    title = "answers of `swift infer`"
    signatures = (("response", "labels", "messages"),)
    fields = {"messages": "prompt_text", "response": "completion_text", "labels": "answer"}
    engine = "ms-swift"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        found = values.get("logprobs")
        tokens = (found.get("content") or []) if isinstance(found, dict) else []
        yield Known(
            row=row,
            prompt=asked(messages(values, "messages")),
            completion=needed_text(values, "response"),
            answer=reference(values.get("labels")),
            logprobs=[float(token["logprob"]) for token in tokens] or None,
            logprob_texts=[str(token["token"]) for token in tokens] or None,
            rest=rest_of(values, {"messages", "response", "labels", "logprobs"}),
        )


FORMAT = SwiftAnswers
