"""vLLM's /v1/completions: a request for one completion, and what its answer says. Token ids both ways, no text."""

from __future__ import annotations

from typing import Any

from pipeline.common.errors import UserError
from pipeline.generate.engine import CompletionRequest, Reply

NO_LOGPROB = -9999.0
"""What the server writes for minus infinity, which JSON does not have."""


def request_of(ask: CompletionRequest, model: str | None, max_tokens: int) -> dict[str, Any]:
    """The body of a request. Every setting that changes the draw is in it: a server's own defaults decide nothing.

    Args:
        model: what the server calls it; None for whatever it serves.
    """
    sampling = ask.sampling
    return {
        **({"model": model} if model else {}),
        "prompt": ask.prompt_token_ids,
        "add_special_tokens": False,
        "n": 1,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": ask.seed if sampling.temperature > 0 else None,
        "stop": list(sampling.stop),
        "logprobs": 0,
        "return_token_ids": True,
        "stream": False,
    }


def reply_of(ask: CompletionRequest, answer: dict[str, Any], url: str, max_tokens: int) -> Reply:
    """One finished completion.

    Raises:
        UserError: the server answers in a way that none of its completions can be used: no token ids, no logprobs, another
            prompt than was asked, an end that is its own and not the sampling's.
    """
    choice = _choice(answer, url)
    tokens, finish = choice["token_ids"], choice.get("finish_reason")
    if choice.get("prompt_token_ids") not in (None, ask.prompt_token_ids):
        raise UserError(f"{url}: answers another prompt than it was given. Start the server without settings that change prompts")
    logprobs = _logprobs(choice, url)
    if len(logprobs) != len(tokens):
        return Reply(ask.key, tokens, [], finish, None, "the server's logprobs are of other tokens")
    if finish == "length" and len(tokens) < max_tokens:
        raise UserError(
            f"{url}: ended a completion after {len(tokens)} tokens; {max_tokens} were asked for. "
            "Start the server with a larger --max-model-len, and without a limit of its own on max_new_tokens"
        )
    error = None if finish in ("stop", "length") else f"the server ended it with {finish!r}"
    stopped_by = choice["stop_reason"] if isinstance(choice.get("stop_reason"), str) else None
    text = None if stopped_by is None else str(choice.get("text", ""))
    return Reply(ask.key, tokens, logprobs, finish if isinstance(finish, str) else None, text, error, stopped_by)


def _choice(answer: dict[str, Any], url: str) -> dict[str, Any]:
    """The answer's only completion, with its token ids."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(choice, dict):
        raise UserError(f"{url}: /v1/completions answers without a completion; is it a vLLM server?")
    tokens = choice.get("token_ids")
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise UserError(
            f"{url}: gives no token ids. They come from a vLLM server that knows return_token_ids, with no proxy before it that "
            "drops them"
        )
    return choice


def _logprobs(choice: dict[str, Any], url: str) -> list[float]:
    """Of the sampled tokens, in nats, as the offline engine has them."""
    section = choice.get("logprobs")
    values = section.get("token_logprobs") if isinstance(section, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise UserError(f"{url}: gives no logprobs. Start the server without --max-logprobs 0")
    return [min(float(value), 0.0) if value > NO_LOGPROB else float("-inf") for value in values]
