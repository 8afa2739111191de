"""What a stage and its engines say to one another about completions, as values that JSON can hold."""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from pipeline.config.engine import SamplingConfig
from pipeline.generate.engine import CompletionRequest, Reply


def asks_to_json(asks: Sequence[CompletionRequest]) -> dict[str, Any]:
    """Requests of one group: the prompt is said once."""
    first = asks[0]
    return {
        "group": first.key[:2],
        "prompt": first.prompt_token_ids,
        "sampling": first.sampling.model_dump(mode="json"),
        "samples": [ask.key[2] for ask in asks],
        "seeds": [ask.seed for ask in asks],
    }


def asks_from_json(said: dict[str, Any]) -> list[CompletionRequest]:
    """The requests of `asks_to_json`.

    >>> ask = CompletionRequest((0, 3, 1), [5, 6], SamplingConfig(), 42)
    >>> asks_from_json(asks_to_json([ask])) == [ask]
    True
    """
    job, group = said["group"]
    sampling = SamplingConfig(**said["sampling"])
    pairs = zip(said["samples"], said["seeds"], strict=True)
    return [CompletionRequest((job, group, sample), said["prompt"], sampling, seed) for sample, seed in pairs]


def reply_to_json(reply: Reply) -> list[Any]:
    """A completion. Its logprobs are stored in 32 bits, and said in 32 bits."""
    values = _packed("i", reply.token_ids), _packed("f", reply.logprobs)
    return [*reply.key, *values, reply.finish_reason, reply.text, reply.error, reply.stopped_by]


def reply_from_json(said: Sequence[Any]) -> Reply:
    """The completion of `reply_to_json`.

    >>> reply = Reply((0, 3, 1), [70, 80], [-0.5, float("-inf")], "stop", None, None)
    >>> reply_from_json(reply_to_json(reply)) == reply
    True
    """
    job, group, sample, tokens, logprobs, finish_reason, text, error, stopped_by = said
    return Reply((job, group, sample), _unpacked("i", tokens), _unpacked("f", logprobs), finish_reason, text, error, stopped_by)


def _packed(code: str, values: Sequence[Any]) -> str:
    return b64encode(array(code, values).tobytes()).decode()


def _unpacked(code: str, text: str) -> list[Any]:
    values = array(code)
    values.frombytes(b64decode(text))
    return values.tolist()
