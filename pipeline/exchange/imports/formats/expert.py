"""Expert answers: a prompt and how someone who can solves it. No policy drew them, so they have neither logprobs nor seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.formats.plain import NAMES, Plain
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.sources.chats import chat

CHATS = ("messages", "conversations")


class Expert(Format):
    """One answer a row, in two columns, or as chat messages of which the assistant's last one is the answer."""

    name = "expert"
    title = "expert answers (source: expert)"
    fields = {
        "prompt, question, problem, instruction": "prompt_text",
        "completion, solution, response, output, answer": "completion_text",
        "messages, conversations": "prompt_text, completion_text",
    }
    engine = "expert"
    source = "expert"
    takes = frozenset({"prompt", "completion", "answer", "reward", "prompt_id", "group", "policy"})
    ends_with_eos = True

    def known(self, row: SourceRow) -> Iterable[Known]:
        if not row.values.keys().isdisjoint(CHATS) and not {"prompt", "completion"} & self.options.columns.keys():
            return _Chats(self.options).known(row)
        return _Columns(self.options).known(row)


class _Columns(Plain):
    """As plain, with the names that question-and-answer sets have."""

    defaults: dict[str, tuple[str, ...]] = NAMES | {
        "prompt": ("prompt", "question", "problem", "instruction"),
        "completion": ("completion", "solution", "response", "output", "answer"),
        "answer": ("reference_answer",),
    }

    def known(self, row: SourceRow) -> Iterable[Known]:
        for found in super().known(row):
            missing = [name for name in ("prompt", "completion") if getattr(found, name) is None]
            if missing:
                at: Any = self._column(missing[0], row.values)
                raise ValueError(f"column {at}: is null or missing, expected the {missing[0]}. Name it: --map {missing[0]}=...")
            yield found


class _Chats(Plain):
    """As plain, with the prompt and the answer in one list of messages."""

    defaults: dict[str, tuple[str, ...]] = NAMES | {"prompt": CHATS, "completion": (), "answer": ("reference_answer",)}

    def known(self, row: SourceRow) -> Iterable[Known]:
        column = next(name for name in CHATS if name in row.values)
        said = row.values[column]
        ends = chat(said, column) if isinstance(said, list) else []
        if len(ends) < 2 or ends[-1]["role"] != "assistant" or ends[-1].get("tool_calls"):
            raise ValueError(f"column {column}: expected chat messages that end with an assistant's answer")
        return super().known(row)


FORMAT = Expert
