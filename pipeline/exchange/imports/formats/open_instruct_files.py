"""open-instruct: what --save_traces writes, <run>_rollouts_000000.jsonl.

Fields (open_instruct/rl_utils.py, `RolloutRecord`): step, sample_idx, prompt_idx, prompt_tokens, response_tokens, reward,
advantage, finish_reason, dataset, ground_truth, request_info, logprobs (vLLM's, of each response token).
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import integer, number, numbers, rest_of, text, token_ids


class OpenInstruct(Format):
    """One completion a line, token by token. The logprobs' mode is not in the file."""

    name = "open-instruct"
    title = "open-instruct's saved rollouts"
    signatures = (("prompt_tokens", "response_tokens", "prompt_idx", "finish_reason"),)
    fields = {
        "prompt_tokens": "prompt_token_ids",
        "response_tokens": "completion_token_ids",
        "logprobs": "behavior_logprobs",
        "reward": "reward",
        "finish_reason": "finish_reason",
        "ground_truth": "answer",
        "step": "group",
        "prompt_idx": "group",
    }
    engine = "open-instruct"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        used_tools = (values.get("request_info") or {}).get("tool_calleds")
        if used_tools:
            raise ValueError("column request_info: a tool was called, and the file does not say which tokens are the tool's")
        truth = values.get("ground_truth")
        used = {"prompt_tokens", "response_tokens", "logprobs", "reward", "finish_reason"}
        yield Known(
            row=row,
            prompt_tokens=token_ids(values, "prompt_tokens"),
            completion_tokens=token_ids(values, "response_tokens"),
            logprobs=numbers(values, "logprobs"),
            reward=number(values, "reward"),
            finish_reason=text(values, "finish_reason"),
            answer=truth if isinstance(truth, str) else None,
            group=(f"step {integer(values, 'step')}", f"prompt {integer(values, 'prompt_idx')}"),
            rest=rest_of(values, used | ({"ground_truth"} if isinstance(truth, str) else set())),
        )


FORMAT = OpenInstruct
