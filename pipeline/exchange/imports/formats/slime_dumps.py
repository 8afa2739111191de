"""slime: what --save-debug-rollout-data writes, one .pt file a rollout.

A dump is {rollout_id, samples}; a sample (slime/utils/types.py, `Sample.to_dict`) has group_index, index, prompt (text, or
messages), tokens (prompt and response), response, response_length, label, reward (a number, or an object of them), loss_mask and
rollout_log_probs (both of the response's tokens), status, metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import Values, integer, number, numbers, reference, rest_of, text, token_ids, truths

FINISH = {"completed": "stop", "truncated": "length"}
FAILED = ("aborted", "failed", "pending")
USED = {"prompt", "tokens", "response", "response_length", "label", "reward", "loss_mask", "rollout_log_probs", "status", "_dump"}


class Slime(Format):
    """A sample a completion, token by token."""

    name = "slime"
    title = "slime's rollout dumps (--save-debug-rollout-data)"
    signatures = (("tokens", "response_length", "response", "group_index"), ("tokens", "response_length", "rollout_log_probs"))
    fields = {
        "tokens, response_length": "prompt_token_ids, completion_token_ids",
        "loss_mask": "action_mask",
        "rollout_log_probs": "behavior_logprobs",
        "reward": "reward",
        "label": "answer",
        "rollout_id, group_index": "group",
        "status": "finish_reason, status",
    }
    engine = "slime"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        ids, length = token_ids(values, "tokens"), integer(values, "response_length")
        if ids is None or length is None or not 0 <= length < len(ids):
            raise ValueError(f"columns tokens and response_length: {length} tokens of the response among {len(ids or ())}")
        mask, status = truths(values, "loss_mask"), text(values, "status")
        if mask is not None and len(mask) != length:
            raise ValueError(f"column loss_mask: has {len(mask)} values for {length} tokens of the response")
        reward, components = _reward(values)
        failed = status in FAILED
        prompt = values.get("prompt")
        yield Known(
            row=row,
            prompt=prompt if isinstance(prompt, str) and prompt else None,
            prompt_tokens=ids[: len(ids) - length],
            completion=text(values, "response"),
            completion_tokens=ids[len(ids) - length :],
            logprobs=numbers(values, "rollout_log_probs") or None,
            action_mask=None if mask is None or all(mask) else mask,
            reward=reward,
            components=components,
            answer=reference(values.get("label")),
            finish_reason=FINISH.get(status or ""),
            group=(row.file, *([f"group {group}"] if (group := integer(values, "group_index")) is not None else [])),
            status="engine_error" if failed else None,
            error=f"slime's status is {status}" if failed else None,
            rest=rest_of(values, USED),
        )


def _reward(values: Values) -> tuple[float | None, dict[str, Any]]:
    """A number, or the parts that an object has, of which `score` is the total where it is there."""
    if not isinstance(values.get("reward"), dict):
        return number(values, "reward"), {}
    parts = {name: number(values["reward"], name) for name, item in values["reward"].items() if isinstance(item, int | float)}
    return parts.get("score", parts.get("reward")), parts


FORMAT = Slime
