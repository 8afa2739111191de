"""verifiers 0.1: results.jsonl of `vf-eval -s`, with tokens where the trajectory was saved too (`-C trajectory`).

Fields: example_id, prompt and completion (messages, or texts), answer, reward, metrics, error, is_truncated; trajectory, a list
of turns with tokens: prompt_ids (everything before the turn), completion_ids and completion_logprobs. Tool calls in messages
are JSON texts. Beside it lies metadata.json with the model and how it was sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.exchange.imports.format import Format, Options
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import (
    Values,
    answer,
    is_missing,
    messages,
    number,
    numbers,
    reference,
    rest_of,
    text,
    token_ids,
    truths,
)
from pipeline.sources.readers import json_object

USED = {"prompt", "completion", "answer", "reward", "trajectory", "error", "timing"}


class VerifiersResults(Format):
    """A completion a line; with tokens, one for each part of the trajectory whose turns continue one another."""

    name = "verifiers-0.1"
    title = "results.jsonl of verifiers 0.1 (vf-eval -s)"
    signatures = (("example_id", "prompt", "completion", "reward"),)
    fields = {
        "prompt": "prompt_text",
        "completion": "completion_text",
        "trajectory[].tokens": "prompt_token_ids, completion_token_ids, behavior_logprobs, action_mask",
        "example_id": "group",
        "reward": "reward",
        "answer": "answer",
        "metadata.json: model, sampling_args": "policy_id, temperature, top_p, top_k, min_p",
    }
    engine = "verifiers"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._metadata: dict[Path | None, Values] = {}

    @classmethod
    def beside(cls, file: Path) -> Path | None:
        found = file.with_name(file.name.replace("results", "metadata")).with_suffix(".json")
        return found if found != file and found.is_file() else None

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        said = self._of_all(row)
        sampling = said.get("sampling_args") or {}
        extra = sampling.get("extra_body") or {}
        error = values.get("error")
        common: dict[str, Any] = {
            "row": row,
            "prompt": messages(values, "prompt"),
            "group": (f"example {values['example_id']}",),
            "answer": reference(values.get("answer")),
            "reward": number(values, "reward"),
            "temperature": number(sampling, "temperature"),
            "top_p": number(sampling, "top_p"),
            "top_k": number(extra, "top_k"),
            "min_p": number(extra, "min_p"),
            "policy": text(said, "model"),
            "status": None if is_missing(error) else "engine_error",
            "error": None if is_missing(error) else str(error)[:500],
            "rest": rest_of(values, USED),
        }
        common["top_k"] = None if common["top_k"] is None else int(common["top_k"])
        turns = values.get("trajectory")
        if isinstance(turns, list) and turns and all(isinstance(turn.get("tokens"), dict) for turn in turns):
            for part in _continued(turns):
                yield Known(**common, **_of_tokens(part), finish_reason=_finish(part[-1]))
            return
        cut = values.get("is_truncated")
        finish = None if cut is None else "length" if cut else "stop"
        yield Known(**common, completion=answer(values, "completion"), finish_reason=finish)

    def _of_all(self, row: SourceRow) -> Values:
        path = None if row.path is None else self.beside(row.path)
        if path not in self._metadata:
            self._metadata[path] = {} if path is None else json_object(path.read_bytes())
        return self._metadata[path]


def _continued(turns: list[Values]) -> list[list[Values]]:
    """Turns in parts, in each of which a turn was given all that came before."""
    parts: list[list[Values]] = []
    for turn in turns:
        before = parts[-1][-1]["tokens"] if parts else None
        whole = before and [*before["prompt_ids"], *before["completion_ids"]]
        if whole and turn["tokens"]["prompt_ids"][: len(whole)] == whole:
            parts[-1].append(turn)
        else:
            parts.append([turn])
    return parts


def _of_tokens(turns: list[Values]) -> dict[str, Any]:
    ids: list[int] = []
    drawn: list[bool] = []
    logprobs: list[float] | None = []
    for turn in turns:
        tokens = turn["tokens"]
        given, own = token_ids(tokens, "prompt_ids") or [], token_ids(tokens, "completion_ids") or []
        mask = truths(tokens, "completion_mask") or [True] * len(own)
        said = numbers(tokens, "completion_logprobs")
        if said and len(said) != len(own):
            raise ValueError(f"column trajectory: {len(said)} completion_logprobs for {len(own)} completion_ids")
        if logprobs is not None:
            logprobs = [*logprobs, *[0.0] * (len(given) - len(ids)), *said] if said else None
        drawn += [False] * (len(given) - len(ids)) + mask
        ids = given + own
    return split(ids, drawn, logprobs, column="trajectory")


def _finish(turn: Values) -> str | None:
    response = turn.get("response")
    message = response.get("message") if isinstance(response, dict) else None
    found = text(message, "finish_reason") if isinstance(message, dict) else None
    if found is None and isinstance(turn.get("is_truncated"), bool):
        return "length" if turn["is_truncated"] else "stop"
    return found


FORMAT = VerifiersResults
