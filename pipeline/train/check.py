"""What is checked before the first step: lengths, the attention, the model's code, and the stored logprobs.

What fails is not trained, and not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.train import TrainConfig
from pipeline.train.batch import Batch, collate
from pipeline.train.metrics import StepRecord
from pipeline.train.model import CompilerError, Policy
from pipeline.train.plan import PackedRow
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup

LARGEST_DIFFERENCE = 1e-3
"""|packed - separate| logprob of any token, nats, that is accepted in float32: far above rounding, far below a wrong mask."""
MEAN_DIFFERENCE = 0.2
"""The same of the mean over tokens, which decides in bfloat16: near a logit of 32 its neighbors are 0.25 apart, so single
tokens differ by 0.4 and the mean by 0.06 without any fault. A mask that leaks moves the mean by several nats."""
PROBE_TOKENS = 96
"""Longest sequence that packed rows are compared on."""


def make_ready(
    policy: Policy,
    example: TrainingGroup,
    longest: int,
    attention: Literal["auto", "sdpa", "segments", "flex"],
    notify: Callable[[str], None],
) -> None:
    """Make sure that a policy gives the logprobs of the model alone on sequences of such lengths.

    If its attention was chosen automatically and fails, it falls back to sdpa and says so.

    Args:
        example: some group of the data; the check is made on tokens that occur in it.
        longest: tokens of the longest prompt with its completion.

    Raises:
        UserError: as `check_lengths` and `self_check`.
    """
    check_lengths(policy.model, longest)
    batch = probe(example, longest, policy.device)
    try:
        self_check(policy, batch)
    except CompilerError:
        raise
    except Exception as error:
        if attention != "auto" or policy.attention == "sdpa":
            raise
        notify(f"attention: {policy.attention} does not work here ({' '.join(str(error).split())[:200]}); sdpa is used")
        policy.use_attention("sdpa")
        self_check(policy, batch)


def probe(example: TrainingGroup, longest: int, device: torch.device) -> Batch:
    """Two groups of three completions each, of tokens that occur in the data.

    Real rows would not do: one completion alone in its row, or completions of one token, give the same whatever they see.
    """
    known = np.unique(np.concatenate([[0, 1], example.prompt, *(completion.tokens for completion in example.completions)]))
    draw = np.random.default_rng(0)
    length = max(8, min(longest, PROBE_TOKENS))

    def tokens(count: int) -> Any:
        return draw.choice(known, count).astype(np.int32)

    def group(name: str, prompt: int, lengths: tuple[int, ...]) -> TrainingGroup:
        drawn = [tokens(count) for count in lengths]
        completions = [TrainingCompletion(name, index, one, None, np.ones(len(one), np.bool_)) for index, one in enumerate(drawn)]
        return TrainingGroup(tokens(prompt), completions)

    most = length - length // 4
    groups = group("a", length // 4, (most, most // 2, 2)), group("b", length // 8, (2, most, most // 3))
    return collate([PackedRow(one, one.completions) for one in groups], device)


def self_check(policy: Policy, batch: Batch) -> None:
    """Compare packed logprobs with the model's own logits on [prompt, completion] alone, for every completion of some rows.

    flex_attention's kernels are compiled for each direction, so there its backward pass must work too.

    Raises:
        UserError: they differ by more than rounding, as with a model whose attention ignores the mask it is given, or whose
            logits are more than a linear map of the last hidden state; or they are not finite.
    """
    found = differences(policy, batch)
    if not found.isfinite().all():
        raise UserError(
            f"{policy.model.config.model_type}: the model's logprobs are not finite before the first step; its weights hold NaN "
            "or infinity. Restore the checkpoint from a copy, or start from an earlier one"
        )
    difference, limit = (found.max(), LARGEST_DIFFERENCE) if policy.dtype == "float32" else (found.mean(), MEAN_DIFFERENCE)
    if not difference <= limit:
        raise UserError(
            f"{policy.model.config.model_type}: packed rows give logprobs that differ by {difference:.3g} nats from the "
            f"model's own (attention: {policy.attention}). This architecture cannot be trained with prompts shared in a row yet"
        )
    if policy.attention == "flex" and policy.parameters:
        torch.autograd.backward(policy.hidden(batch).sum())
        for parameter in policy.parameters.values():
            parameter.grad = None


def differences(policy: Policy, batch: Batch) -> Tensor:
    """|packed - separate| logprob of every completion token of a batch, nats."""
    packed = policy.logprobs(batch)[0]
    with torch.no_grad():
        return torch.cat([(packed[here] - alone).abs() for here, alone in _alone(policy, batch)])


def _alone(policy: Policy, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Which tokens are a completion's, and their logprobs without the others."""
    length = batch.input_ids.shape[1]
    for number in range(len(batch.flat.completions)):
        here = batch.flat.sequence == number
        row, prompt_end = divmod(int(batch.predicted_from[here][0]), length)
        targets = batch.flat.targets[here]
        ids = torch.cat([batch.input_ids[row, : prompt_end + 1], targets])
        logits = policy.logits(ids)[prompt_end:-1]
        yield here, (logits / batch.flat.temperature[here, None]).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def check_lengths(model: Any, longest: int) -> None:
    """Refuse sequences whose logprobs would depend on what is packed beside them.

    Packed rows do not know of sliding windows. And two kinds of rotary positions change all their frequencies once any
    position of a batch is beyond a length.

    Args:
        longest: tokens of the longest prompt with its completion.

    Raises:
        UserError: there is such a sequence.
    """
    text = model.config.get_text_config()
    for what, limit in (*_windows(text), *_positions(text)):
        if longest > limit:
            raise UserError(
                f"{text.model_type}: {what}={limit} tokens, but the longest prompt and completion have {longest}. Such models "
                "cannot be trained or scored on longer sequences yet; drop these completions, or lower generate.max_tokens"
            )


def _windows(text: Any) -> Iterator[tuple[str, int]]:
    layers = set(getattr(text, "layer_types", None) or ("sliding_attention", "chunked_attention"))
    settings = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    for kind, setting in settings.items():
        window = getattr(text, setting, None)
        if kind in layers and window:
            yield f"its layers see {setting}", window


def _positions(text: Any) -> Iterator[tuple[str, int]]:
    given = getattr(text, "rope_parameters", None) or {}
    for rope in [given, *(one for one in given.values() if isinstance(one, dict))]:
        kind = rope.get("rope_type")
        if kind == "longrope":
            yield "its longrope changes beyond original_max_position_embeddings", rope["original_max_position_embeddings"]
        if kind and "dynamic" in kind:
            yield "its dynamic positions change beyond max_position_embeddings", text.max_position_embeddings


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
