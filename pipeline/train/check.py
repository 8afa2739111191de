"""What is checked before the first step: the attention, the model's code, and the stored logprobs. What fails is not trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipeline.config_train import TrainConfig
from pipeline.errors import UserError
from pipeline.train.batch import Batch
from pipeline.train.metrics import StepRecord
from pipeline.train.model import Policy

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""Largest |packed - separate| logprob, nats, that is accepted: far above rounding, far below a wrong mask."""


def settle_attention(policy: Policy, batch: Batch, config: TrainConfig, tell: Callable[[str], None]) -> None:
    """Check the policy's attention on some rows. If it was chosen automatically and fails, fall back to sdpa and say so.

    Raises:
        UserError: as `self_check`.
    """
    try:
        self_check(policy, batch)
    except Exception as error:
        if config.attention != "auto" or policy.attention == "sdpa":
            raise
        tell(f"attention: {policy.attention} does not work here ({' '.join(str(error).split())[:200]}); sdpa is used")
        policy.use_attention("sdpa")
        self_check(policy, batch)


def self_check(policy: Policy, batch: Batch) -> None:
    """Compare packed logprobs of a few rows with the model's own logits on [prompt, completion] alone.

    Raises:
        UserError: they differ by more than rounding, as with a model whose attention ignores the mask it is given, or whose
            logits are more than a linear map of the last hidden state.
    """
    difference = largest_difference(policy, batch)
    if not difference <= TOLERANCE[policy.dtype]:
        raise UserError(
            f"{policy.model.config.model_type}: packed rows give logprobs that differ by {difference:.3g} nats from the "
            f"model's own (attention: {policy.attention}). This architecture cannot be trained with prompts shared in a row yet"
        )


def largest_difference(policy: Policy, batch: Batch) -> float:
    """Largest |packed - separate| logprob of the batch's first and last completion, nats."""
    length = batch.input_ids.shape[1]
    with torch.no_grad():
        packed = policy.logprobs(batch)[0]
        worst = 0.0
        for number in (0, len(batch.flat.completions) - 1):
            here = batch.flat.sequence == number
            row, prompt_end = divmod(int(batch.predicted_from[here][0]), length)
            targets = batch.flat.targets[here]
            ids = torch.cat([batch.input_ids[row, : prompt_end + 1], targets])
            logits = policy.logits(ids)[prompt_end:-1]
            alone = (logits / batch.flat.temperature[here, None]).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            worst = max(worst, float((packed[here] - alone).abs().max()))
    return worst


def check_window(model: Any, longest: int) -> None:
    """Refuse sequences that a model with a sliding window would not see whole: packed rows do not know of windows.

    Args:
        longest: tokens of the longest prompt with its completion.

    Raises:
        UserError: there is such a sequence.
    """
    text = model.config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ("sliding_attention", "chunked_attention"))
    windows = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    for kind, setting in windows.items():
        window = getattr(text, setting, None)
        if kind in layers and window and longest > window:
            raise UserError(
                f"{text.model_type}: its layers see {setting}={window} tokens, but the longest prompt and completion have "
                f"{longest}. Such models cannot be trained on longer sequences yet; drop these completions, or lower "
                "generate.max_tokens"
            )


def check_difference(record: StepRecord, config: TrainConfig) -> dict[str, float] | None:
    """Compare stored logprobs with those before the first step, on what the parent drew: other policies' differ.

    Returns:
        Columns of the metrics table; None if there is nothing to compare.

    Raises:
        UserError: they differ by more than train.max_logprob_difference.
    """
    found = record.logprob_difference()
    if found is None:
        return None
    mean, largest = found
    if mean > config.max_logprob_difference:
        raise UserError(
            f"the trainer's logprobs differ from the stored ones by {mean:.4f} nats per token on average (largest "
            f"{largest:.4f}), more than train.max_logprob_difference={config.max_logprob_difference}. Likely causes: "
            "the rollouts are not from this checkpoint; they hold raw logprobs at a temperature other than 1; the text was "
            "tokenised again; engine and trainer use other number formats or model code"
        )
    return {"logprob_difference_mean": mean, "logprob_difference_max": largest}
