"""Rows of rollouts from what sources say: nothing is made up, and what is not known is null, unknown, or says why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipeline.exchange.imports.format import Format, as_json, misfit
from pipeline.exchange.imports.known import Known, Misfit
from pipeline.exchange.imports.tokens import SourceTokenizer, Tokenized
from schemas import Origins, Rollouts

UNGRADED = "not graded: the source has no reward"
UNKNOWN = "unknown"
GROUP, COMPONENTS, ORDER = "_group", "_components", "_order"
"""Columns of a row until its group is whole: the group's number, the parts of the reward as JSON, the row's own number."""
OWN = ("group_id", "sample_index")
ROUNDING = 1e-6
"""A logprob may be so far above 0 by rounding; it is stored as 0."""
WIDTHS = {"seed": 63, "top_k": 31, "policy_version": 31}
"""Bits of whole numbers."""
SCHEMA: dict[str, Any] = {
    name: column.dtype for table in (Rollouts, Origins) for name, column in table.columns().items() if name not in OWN
} | {GROUP: pl.Int64, COMPONENTS: pl.String, ORDER: pl.Int64}


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the user says of all completions. It fills in where the source says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    logprobs_mode: str | None = None
    policy: str | None = None
    reward: float | None = None
    reward_weights: dict[str, float] = field(default_factory=dict)
    """Of the parts of a reward whose sum the source does not have; 1 where not named."""


class RowMaker:
    """Turns what a format read into rows of `SCHEMA`, still without the number of their group."""

    def __init__(self, form: Format, tokens: SourceTokenizer, declared: Declared) -> None:
        self._form, self._tokens, self._declared = form, tokens, declared

    def of(self, batch: Sequence[Known]) -> Iterator[tuple[Known, dict[str, Any]] | Misfit]:
        """A row for each completion, or why there is none."""
        for known, tokenized in zip(batch, self._tokens.of(batch), strict=True):
            try:
                if isinstance(tokenized, ValueError):
                    raise tokenized
                yield known, self._row(known, tokenized)
            except ValueError as error:
                yield misfit(known.row, str(error))

    def _row(self, known: Known, found: Tokenized) -> dict[str, Any]:
        said = self._declared
        rest = known.rest | ({"logprobs": found.unaligned} if found.unaligned else {})
        return {
            "prompt_id": known.prompt_id or hashed_id(known, found),
            "prompt_token_ids": found.prompt_tokens,
            "completion_token_ids": found.completion_tokens,
            "behavior_logprobs": found.logprobs and [0.0 if 0 < value <= ROUNDING else value for value in found.logprobs],
            "action_mask": found.action_mask,
            "prompt_text": found.prompt_text,
            "completion_text": found.completion_text,
            "answer": known.answer,
            "finish_reason": known.finish_reason,
            "policy_id": known.policy or said.policy or UNKNOWN,
            "source": self._form.source,
            "temperature": _first(known.temperature, said.temperature),
            "top_p": _first(known.top_p, said.top_p),
            "min_p": _first(known.min_p, said.min_p),
            "logprobs_mode": UNKNOWN if found.logprobs is None else known.logprobs_mode or said.logprobs_mode or UNKNOWN,
            "engine": known.engine or self._form.engine,
            **_whole_numbers(seed=known.seed, top_k=_first(known.top_k, said.top_k), policy_version=known.policy_version or 0),
            **_graded(known, said),
            "file": known.row.file,
            "number": known.row.number,
            "tokens": "retokenized" if found.retokenized else "source",
            "rest": as_json(rest),
            COMPONENTS: as_json(known.components),
        }


def _graded(known: Known, said: Declared) -> dict[str, Any]:
    """Reward, status and error."""
    reward, parts = known.reward, {name: value for name, value in known.components.items() if value is not None}
    if reward is None and parts:
        weights = known.component_weights | said.reward_weights
        reward = sum(weights.get(name, 1.0) * value for name, value in parts.items())
    failed = known.status in ("reward_error", "engine_error")
    if reward is None and not failed:
        reward = said.reward
    if failed:
        return {"reward": reward, "status": known.status, "error": known.error or "the source does not say why"}
    if reward is None:
        return {"reward": None, "status": "reward_error", "error": UNGRADED}
    status = known.status or ("truncated" if known.finish_reason == "length" else "ok")
    return {"reward": reward, "status": status, "error": known.error}


def hashed_id(known: Known, found: Tokenized) -> str:
    """A prompt's name from its question, as prompts without one are named in a run."""
    prompt = known.prompt
    if isinstance(prompt, list):
        prompt = prompt[0]["content"] if len(prompt) == 1 else json.dumps(prompt, sort_keys=True)
    return hashed(prompt or found.prompt_text)


def hashed(question: str) -> str:
    return f"prompt-{hashlib.sha256(question.encode()).hexdigest()[:12]}"


def group_key(known: Known, row: dict[str, Any]) -> bytes:
    """What completions of one group have in common: the prompt, token by token, the policy, and what the format says."""
    return key_of(known.group, row["policy_id"], row["policy_version"], row["prompt_id"], row["prompt_token_ids"])


def key_of(group: Sequence[str], policy: str, version: int, prompt_id: str, prompt: list[int]) -> bytes:
    same = [group, policy, version, prompt_id, prompt]
    return hashlib.blake2b(json.dumps(same).encode(), digest_size=16).digest()


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _whole_numbers(**values: int | None) -> dict[str, int | None]:
    for name, value in values.items():
        if value is not None and not -(2 ** WIDTHS[name]) <= value < 2 ** WIDTHS[name]:
            raise ValueError(f"{name} is {value}, more than {WIDTHS[name]} bits")
    return values
