"""NeMo-RL: what GRPO training logs, train_data_step<N>.jsonl.

Fields (nemo_rl/algorithms/grpo.py; written by `log_batched_dict_as_jsonl` of nemo_rl/utils/logger.py, which logs batches of one,
so that every value but idx is a list of one): content (texts of the messages), rewards, input_lengths, token_ids (prompt and
completion, padded on the right), token_loss_mask, sample_loss_mask, advantages, generation_logprobs, prev_logprobs; all three
token-wise ones have the length of token_ids, with a token's value at its own place. With dynamic sampling the rows are those
that it kept, filtered_rewards theirs, and rewards those of the batch before. val_data_step<N>.jsonl beside them has texts and
rewards of questions that are held out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import number, numbers, rest_of, token_ids, truths

LISTS = ("token_ids", "token_loss_mask", "generation_logprobs")


class NemoRL(Format):
    """The completion starts with the first token that carries loss; later ones without it are the environment's."""

    name = "nemo-rl"
    title = "NeMo-RL's train_data_step JSONL"
    signatures = (("token_ids", "token_loss_mask", "generation_logprobs", "input_lengths", "rewards"),)
    fields = {
        "token_ids": "prompt_token_ids, completion_token_ids",
        "token_loss_mask": "action_mask",
        "generation_logprobs": "behavior_logprobs",
        "filtered_rewards, rewards": "reward",
        "content": "prompt_text, completion_text",
        "<file name>": "group",
    }
    engine = "NeMo-RL"
    not_rows = ("val_data_step*.jsonl",)

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = {name: _only(name, value) for name, value in row.values.items()}
        length = int(number(values, "input_lengths") or 0)
        ids, mask, logprobs = token_ids(values, "token_ids"), truths(values, "token_loss_mask"), None
        logprobs = numbers(values, "generation_logprobs")
        if ids is None or mask is None or logprobs is None:
            raise ValueError(f"column {next(name for name in LISTS if values.get(name) is None)}: is null or missing")
        if not 0 < length <= min(len(ids), len(mask), len(logprobs)):
            raise ValueError(f"column input_lengths: is {length}, and the token lists have {len(ids)} values")
        if number(values, "sample_loss_mask") == 0:
            self.remark("rows whose sample_loss_mask is 0 NeMo-RL did not train on; they are here, with the mask in origins")
        reward = "filtered_rewards" if "filtered_rewards" in values else "rewards"
        texts = values.get("content")
        single = isinstance(texts, list) and len(texts) == 2 and all(isinstance(part, str) for part in texts)
        yield Known(
            row=row,
            prompt=texts[0] if single and isinstance(texts, list) else None,
            completion=texts[1] if single and isinstance(texts, list) else None,
            **split(ids[:length], mask[:length], logprobs[:length], column="token_loss_mask"),
            reward=number(values, reward),
            group=(row.file,),
            rest=rest_of(values, {*LISTS, "input_lengths", reward, *(["content"] if single else [])}),
        )


def _only(name: str, value: Any) -> Any:
    """The value in a list of one. `content` of an earlier version is the list of texts itself."""
    flat_texts = name == "content" and isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value[0] if isinstance(value, list) and len(value) == 1 and not flat_texts else value


FORMAT = NemoRL
