"""lighteval: details_<task>_<time>.parquet of --save-details.

Columns (0.13): doc (query, choices, gold_index), metric, model_response (input_tokens, filled up on the left by
padded_tokens_count; text; output_tokens, filled up on the right with the end token). A metric is of the document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import Values, integer, number, reference, rest_of, text, token_ids


class Lighteval(Format):
    """As many completions a row as the document was sampled."""

    name = "lighteval"
    title = "lighteval's details (--save-details)"
    signatures = (("doc", "metric", "model_response"),)
    fields = {
        "model_response.input_tokens": "prompt_token_ids, without what fills them up",
        "model_response.output_tokens": "completion_token_ids, with one end token",
        "model_response.text": "completion_text",
        "doc.choices[gold_index]": "answer",
        "metric": "reward_<metric>, if the document has one completion",
        "doc.id": "group",
    }
    engine = "lighteval"

    def known(self, row: SourceRow) -> Iterable[Known]:
        doc, said = row.values["doc"], row.values["model_response"]
        texts, outputs = said["text"], said.get("output_tokens") or []
        if not texts:
            raise ValueError("column model_response: no text; loglikelihoods are no completions")
        given, filler = _unfilled(said)
        outputs = _cut(outputs, filler) if len(outputs) == len(texts) else []
        single = len(texts) == 1
        metric = row.values.get("metric") or {}
        components = {name: number(metric, name) for name, value in metric.items() if isinstance(value, int | float)}
        if not single:
            self.remark("a metric is of a document, so its completions have no reward of their own. Grade them: rollbook grade")
        for place, found in enumerate(texts):
            yield Known(
                row=row,
                prompt=None if given and outputs else text(doc, "query"),
                prompt_tokens=given if given and outputs else None,
                completion=found,
                completion_tokens=outputs[place] if outputs else None,
                answer=_gold(doc),
                group=(str(doc.get("task_name")), str(doc.get("id"))),
                components=components if single else {},
                reward=self.reward_of(components) if single else None,
                rest=rest_of({"doc": doc, "metric": None if single else metric}, set()),
            )


def _unfilled(said: Values) -> tuple[list[int], int | None]:
    """The prompt's tokens, and the token that fills up."""
    ids = token_ids(said, "input_tokens") or []
    count = integer(said, "padded_tokens_count") or 0
    return ids[count:], ids[0] if count and ids else None


def _cut(outputs: list[Any], filler: int | None) -> list[list[int]]:
    """Completions without what fills them up. The end token is the filler too, and one of it was drawn."""
    found = [token_ids({"output_tokens": ids}, "output_tokens") or [] for ids in outputs]
    if filler is None:
        runs = Counter(ids[-1] for ids in found if len(ids) > 1 and ids[-1] == ids[-2])
        filler = runs.most_common(1)[0][0] if runs else None
    for ids in found:
        while len(ids) > 1 and ids[-1] == ids[-2] == filler:
            ids.pop()
    return found


def _gold(doc: Values) -> str | None:
    choices, gold = doc.get("choices"), doc.get("gold_index")
    gold = gold[0] if isinstance(gold, list) and gold else gold
    if isinstance(choices, list) and isinstance(gold, int) and 0 <= gold < len(choices):
        return reference(choices[gold])
    return None


FORMAT = Lighteval
