"""inspect-ai: the samples of a log, an .eval archive or what `inspect log dump` prints.

Fields of a sample (inspect-ai 0.3): id, epoch, input, target, messages, output (choices as a server's, with logprobs), scores (by
scorer: value "C", "I", "P", "N", a number, or an object of them), error, attachments (long texts that messages name). The log
says the model and how it was sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import Values, as_answer, is_missing, number, reference, rest_of, text
from pipeline.sources.chats import chat

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
FINISH = {"max_tokens": "length", "model_length": "length"}
ATTACHED = "attachment://"
OWN = ("id", "source", "model", "metadata", "internal")
USED = {"input", "messages", "output", "scores", "_log", "events", "events_data", "attachments", "store", "error"}


class InspectAI(Format):
    """A completion a sample and epoch: what follows its input's messages."""

    name = "inspect-ai"
    title = "inspect-ai's logs (.eval, or `inspect log dump`)"
    signatures = (("epoch", "input", "messages", "output", "_log"),)
    fields = {
        "input, messages": "prompt_text, completion_text",
        "output.choices[0].logprobs": "behavior_logprobs, where their tokens are ours",
        "scores": "reward_<scorer>; the first is the reward",
        "target": "answer",
        "id": "group",
        "eval.model, eval.model_generate_config": "policy_id, temperature, top_p, top_k",
    }
    engine = "inspect-ai"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values, log = row.values, row.values["_log"]
        said = log.get("eval") or {}
        output = values.get("output") or {}
        choice: Values = next(iter(output.get("choices") or ()), {})
        turns = chat([_message(item, values.get("attachments") or {}) for item in values["messages"]], "messages")
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), None)
        if first is None:
            raise ValueError(f"column messages: no answer; {_failure(values.get('error')) or 'the sample has no error either'}")
        first = _asked(values, turns, first)
        logprobs, texts = _logprobs(choice) if len(turns) == first + 1 else (None, None)
        sampling = {**(said.get("model_generate_config") or {}), **((log.get("plan") or {}).get("config") or {})}
        components = _scores(values.get("scores") or {})
        top_k = number(sampling, "top_k")
        stop = text(choice, "stop_reason")
        answer = reference(values.get("target"))
        yield Known(
            row=row,
            prompt=turns[:first],
            completion=as_answer(turns[first:], "messages"),
            logprobs=logprobs,
            logprob_texts=texts,
            finish_reason=FINISH.get(stop or "", stop),
            components=components,
            reward=self._reward(components, log),
            answer=answer,
            group=tuple(str(part) for part in (said.get("task"), said.get("run_id"), values.get("id")) if part is not None),
            temperature=number(sampling, "temperature"),
            top_p=number(sampling, "top_p"),
            top_k=None if top_k is None else int(top_k),
            policy=text(said, "model"),
            status=None if is_missing(values.get("error")) else "engine_error",
            error=_failure(values.get("error")),
            rest=rest_of(values, USED if answer is None else USED | {"target"}),
        )

    def _reward(self, components: dict[str, float | None], log: Values) -> float | None:
        """Of the scorer that is the log's headline, else of the first."""
        headline = ((log.get("results") or {}).get("headline") or {}).get("score")
        stated = [scorer.get("name") for scorer in (log.get("eval") or {}).get("scorers") or ()]
        first = [name for name in (headline, *stated) if name in components]
        return self.reward_of({**{name: components[name] for name in first}, **components})


def _failure(error: Any) -> str | None:
    """What an error says."""
    return None if is_missing(error) else str((error.get("message") if isinstance(error, dict) else error) or error)[:500]


def _asked(values: Values, turns: list[Values], first: int) -> int:
    """How many messages are the input's: it may have an assistant's turn in it."""
    given = values.get("input")
    if isinstance(given, list):
        sources = [item.get("source") if isinstance(item, dict) else None for item in values["messages"]]
        drawn = [place for place in range(len(turns)) if turns[place]["role"] == "assistant" and sources[place] == "generate"]
        return drawn[0] if drawn else first
    return first


def _message(item: Any, attachments: Values) -> Any:
    """A message without what is inspect's own, and with the text that it only names."""
    if not isinstance(item, dict):
        return item
    kept = {name: value for name, value in item.items() if name not in OWN}
    content = kept.get("content")
    if isinstance(content, str) and content.startswith(ATTACHED):
        kept["content"] = attachments.get(content.removeprefix(ATTACHED), content)
    if kept.get("tool_calls"):
        kept["tool_calls"] = [
            {"id": call.get("id"), "name": call.get("function"), "arguments": call.get("arguments")}
            for call in kept["tool_calls"]
        ]
    return kept


def _logprobs(choice: Values) -> tuple[list[float] | None, list[str] | None]:
    found = (choice.get("logprobs") or {}).get("content") or []
    return ([float(token["logprob"]) for token in found], [str(token["token"]) for token in found]) if found else (None, None)


def _scores(scores: Values) -> dict[str, float | None]:
    """Scores as numbers, by scorer; those of an object by scorer and name."""
    found: dict[str, float | None] = {}
    for name, score in scores.items():
        value = score.get("value") if isinstance(score, dict) else score
        parts = {f"{name}_{part}": item for part, item in value.items()} if isinstance(value, dict) else {name: value}
        for one, item in parts.items():
            item = LETTERS.get(item, item) if isinstance(item, str) else item
            if isinstance(item, int | float):
                found[one] = number({one: item}, one)
    return found


FORMAT = InspectAI
