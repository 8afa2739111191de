"""open-instruct: what --save_traces writes, <run>_rollouts_000000.jsonl.

Fields (open_instruct/rl_utils.py, `RolloutRecord`): step, sample_idx, prompt_idx, prompt_tokens, response_tokens, reward,
advantage, finish_reason, dataset, ground_truth, request_info, logprobs (vLLM's, of each response token). Beside them lies
<run>_metadata.jsonl, one line with the model's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.exchange.imports.format import Format, Options
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import integer, number, numbers, reference, rest_of, text, token_ids
from pipeline.sources.readers import json_object


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
        "<run>_metadata.jsonl: model_name": "policy_id",
    }
    engine = "open-instruct"
    not_rows = ("*_metadata.jsonl",)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._models: dict[Path | None, str | None] = {}

    @classmethod
    def beside(cls, file: Path) -> Path | None:
        run, rollouts, _ = file.name.partition("_rollouts_")
        found = file.with_name(f"{run}_metadata.jsonl")
        return found if rollouts and found.is_file() else None

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        used_tools = (values.get("request_info") or {}).get("tool_calleds")
        if used_tools:
            raise ValueError("column request_info: a tool was called, and the file does not say which tokens are the tool's")
        truth = reference(values.get("ground_truth")) if _of_texts(values.get("ground_truth")) else None
        used = {"prompt_tokens", "response_tokens", "logprobs", "reward", "finish_reason"}
        yield Known(
            row=row,
            prompt_tokens=token_ids(values, "prompt_tokens"),
            completion_tokens=token_ids(values, "response_tokens"),
            logprobs=numbers(values, "logprobs"),
            reward=number(values, "reward"),
            finish_reason=text(values, "finish_reason"),
            answer=truth,
            policy=self._policy(row),
            group=(f"step {integer(values, 'step')}", f"prompt {integer(values, 'prompt_idx')}"),
            rest=rest_of(values, used | ({"ground_truth"} if truth is not None else set())),
        )

    def _policy(self, row: SourceRow) -> str | None:
        """The model's name, from the file that the run wrote beside its rollouts."""
        path = None if row.path is None else self.beside(row.path)
        if path not in self._models:
            lines = [] if path is None else path.read_bytes().splitlines()
            self._models[path] = text(json_object(lines[0]), "model_name") if lines else None
        return self._models[path]


def _of_texts(truth: Any) -> bool:
    """References are texts, or a list of them; earlier versions wrote token ids."""
    return isinstance(truth, str) or (isinstance(truth, list) and all(isinstance(item, str) for item in truth))


FORMAT = OpenInstruct
