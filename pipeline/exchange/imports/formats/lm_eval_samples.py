"""lm-evaluation-harness: samples_<task>_<time>.jsonl of --log_samples.

A line is a document under one filter: doc_id, doc, target, arguments (gen_args_0: the prompt and how it was sampled), resps (a
list with the texts of every repeat), filtered_resps, filter, metrics, and each metric, which is of what the filter made of all
repeats. With several filters every document is there once for each. Multiple choice has loglikelihoods and no completions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format, Options
from pipeline.exchange.imports.known import Known, Misfit, SourceRow
from pipeline.exchange.imports.values import Values, is_missing, number, reference, rest_of, text
from pipeline.sources.chats import chat

LOGLIKELIHOODS = "multiple choice: loglikelihoods of given answers, and no completions. Import a task that generates"


class LmEval(Format):
    """As many completions a document as it was repeated; the lines of a second filter repeat them."""

    name = "lm-eval"
    title = "lm-eval's samples (--log_samples)"
    signatures = (("doc_id", "resps", "filtered_resps"),)
    fields = {
        "arguments.gen_args_0.arg_0": "prompt_text",
        "resps": "completion_text, one each",
        "target": "answer",
        "<the metric>": "reward, if a document has one completion",
        "doc_id": "group",
        "arguments.gen_args_0.arg_1": "temperature, top_p, top_k",
    }
    engine = "lm-eval"
    remembers = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._filters: dict[str, str] = {}

    def known(self, row: SourceRow) -> Iterable[Known | Misfit]:
        values = row.values
        used = self._filters.setdefault(row.file, str(values.get("filter")))
        if str(values.get("filter")) != used:
            self.remark(f"lines of other filters than {used!r} have the same completions, and were passed over")
            return
        prompt, sampling = _arguments(values)
        texts = _texts(values["resps"])
        metrics = values.get("metrics")
        names = [name for name in metrics if isinstance(name, str)] if isinstance(metrics, list) else []
        of_answers = [name for name in names if not isinstance(values.get(name), list | dict)]
        if others := [name for name in names if name not in of_answers]:
            self.remark(f"{', '.join(others)}: a metric of the whole task, which is no reward of an answer")
        components = {name: number(values, name) for name in of_answers} if len(texts) == 1 else {}
        if len(texts) > 1:
            self.remark(
                "a metric is of all repeats of a document, so their completions have no reward. Grade them: rollbook grade"
            )
        doc = values.get("doc")
        target = values.get("target")
        rest = rest_of(values, {"arguments", "resps", "target", "filtered_resps"} | ({*of_answers} if len(texts) == 1 else set()))
        for said in texts:
            yield Known(
                row=row,
                prompt=prompt,
                completion=said,
                answer=reference(target) if not is_missing(target) else reference((doc or {}).get("answer")),
                components=components,
                reward=self.reward_of(components),
                group=(row.file, f"document {values['doc_id']}"),
                **_sampling(sampling),
                rest=rest,
            )


def _arguments(values: Values) -> tuple[Any, Values]:
    """The prompt, and how it was continued."""
    arguments = values.get("arguments")
    if isinstance(arguments, dict):
        calls = [[call.get(f"arg_{place}") for place in range(len(call))] for call in arguments.values()]
    else:
        calls = [list(call) for call in arguments or ()]
    if not calls or len(calls[0]) < 2 or not isinstance(calls[0][1], dict) or len(calls) > 1:
        raise ValueError(f"column arguments: {LOGLIKELIHOODS}")
    prompt = calls[0][0]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]  # a server's chat is a named tuple of one text, which JSON writes as a list
    if isinstance(prompt, str) and prompt.startswith('[{"role"'):
        prompt = json.loads(prompt)
    return (chat(prompt, "arguments") if isinstance(prompt, list) else text({"prompt": prompt}, "prompt")), calls[0][1]


def _texts(resps: Any) -> list[str]:
    found = resps[0] if isinstance(resps, list) and len(resps) == 1 else None
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise ValueError(f"column resps: {LOGLIKELIHOODS}")
    return found


def _sampling(said: Values) -> dict[str, Any]:
    """Greedy where it does not sample."""
    drawn, temperature = said.get("do_sample"), number(said, "temperature")
    top_k = number(said, "top_k")
    return {
        "temperature": 0.0 if drawn is False else temperature,
        "top_p": number(said, "top_p"),
        "top_k": None if top_k is None else int(top_k),
    }


FORMAT = LmEval
